"""What this project uses of Flower's private code, named part by part.

Flower may change these without notice. Where a test here fails after an upgrade, read what Flower
did, mend the place that uses it, and then the table. A private import that the table lacks, or an
entry that nothing uses, fails too.
"""

import ast
import inspect
import re
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import flwr.supercore.inflatable.inflatable_utils as inflatable_utils
import httpx
import pytest
from flwr.app import Message, MessageType, RecordDict
from flwr.proto import message_pb2, node_pb2, runtime_pb2
from flwr.supercore.retry import make_simple_http_retry_invoker
from flwr.supernode import start_client_internal

from client.supernode import worker

ROOT = Path(__file__).resolve().parents[2]

#: The modules of Flower that its documentation describes.
PUBLIC = {
    *("flwr", "flwr.app", "flwr.clientapp", "flwr.serverapp"),
    *("flwr.serverapp.strategy", "flwr.simulation"),
}

#: Private names, with the parameters that we pass where we call them, and what we use of them.
TABLE = """
flwr.common.constant.ErrorCode .CLIENT_APP_CRASHED .CLIENT_APP_RAISED_EXCEPTION .NODE_UNAVAILABLE
flwr.common.constant.ErrorCode .LOAD_CLIENT_APP_EXCEPTION .MESSAGE_UNAVAILABLE
flwr.common.constant.ErrorCode .REPLY_MESSAGE_UNAVAILABLE
flwr.common.constant.SubStatus .COMPLETED .FAILED
flwr.supercore.constant.TaskType .CLIENT_APP
flwr.supercore.protobuf.client.ProtobufClientInterceptor
flwr.supercore.run.RunNotRunningException
flwr.supercore.run.Run .create_empty
flwr.supercore.task_identity.TaskIdentity .run_id .node_id .task_id
flwr.supercore.inflatable.inflatable_utils
flwr.supernode.start_client_internal
flwr.supernode.fleet_http_connection .flwr_exit
flwr.common.config.parse_config_args(config)
flwr.proto.runtime_pb2.AcquireTaskRequest
flwr.proto.runtime_pb2.PullAppMessagesRequest
flwr.proto.message_pb2.ConfirmMessageReceivedRequest
flwr.proto.message_pb2.PullObjectRequest
flwr.proto.node_pb2.NodeInfo
flwr.app.message.make_message(metadata, content, error)
flwr.common.serde_utils.metadata_from_proto(metadata_proto)
flwr.common.constant.FLWR_PRIVATE_MAX_ARRAY_CHUNK_SIZE
flwr.supercore.inflatable.inflatable_object.iterate_object_tree(tree)
flwr.supercore.inflatable.inflatable_utils.inflate_object_from_contents(object_id, object_contents)
flwr.superlink.grid.http_grid.HttpGrid ._runtime_client .pull_messages .set_run .run
flwr.supercore.address.resolve_bind_address(address)
flwr.proto.fleet_pb2.PushMessagesRequest
flwr.proto.fleet_pb2.PushMessagesResponse
flwr.proto.fleet_pb2.Reconnect
flwr.proto.message_pb2.PushObjectRequest
flwr.proto.message_pb2.PushObjectResponse
flwr.proto.runtime_pb2.PushAppMessagesRequest
flwr.proto.runtime_pb2.PushAppMessagesResponse
flwr.supercore.sql_mixin .SQLITE_PRAGMAS
flwr.superlink.extensions .get_middleware
flwr.superlink.cli.flower_superlink.flower_superlink()
flwr.superlink.servicer.fleet.fleet_handlers .push_messages .push_object
flwr.superlink.servicer.runtime.runtime_handlers .push_messages
flwr.supercore.heartbeat.HeartbeatSender(heartbeat_fn) .start .stop
flwr.supercore.heartbeat.make_task_heartbeat_fn_http(client)
flwr.supercore.interceptors.RuntimeTokenHttpInterceptor(token)
flwr.supercore.interceptors.RuntimeVersionHttpInterceptor(component_name)
flwr.supercore.interceptors.SuperExecAuthHttpInterceptor(master_secret, protected_methods)
flwr.supercore.log(level, msg)
flwr.supercore.retry.make_simple_http_retry_invoker()
flwr.supercore.runtime.RuntimeHttpClient .AcquireTask .close
flwr.supernode.cli.flower_supernode._parse_args_run_supernode()
flwr.supernode.cli.flower_supernode.flower_supernode()
flwr.supernode.runtime.run_clientapp.pull_task_input(client)
flwr.supernode.runtime.run_clientapp.push_message(client, message, context)
flwr.supernode.runtime.run_clientapp.push_task_output(client, context, sub_status, details)
"""
USED = re.findall(r"^([\w.]+)(\(.*\))?((?: \.\w+)*)$", TABLE, re.MULTILINE)
assert len(USED) == len(TABLE.split("\n")) - 2


def private_imports() -> Iterator[str]:
    """Every name that our packages import from a module of Flower that is not public."""
    for package in ("client", "common", "server", "docker"):
        for path in (ROOT / package).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                module = getattr(node, "module", "") or ""
                if isinstance(node, ast.ImportFrom) and module not in PUBLIC:
                    yield from (f"{module}.{alias.name}" for alias in node.names)
                elif isinstance(node, ast.Import):
                    yield from {alias.name for alias in node.names} - PUBLIC


def look_up(name: str) -> Any:
    """Return a private part of Flower, or fail with its name."""
    module, _, attribute = name.rpartition(".")
    try:
        holder = import_module(module)
        return getattr(holder, attribute, None) or import_module(name)
    except ImportError as error:
        pytest.fail(f"Flower has no {name} any more: {error}")


def test_the_table_names_what_the_sources_import_and_nothing_else() -> None:
    imported = {name for name in private_imports() if name.split(".")[0] == "flwr"}
    assert imported == {name for name, _, _ in USED}


@pytest.mark.parametrize(("name", "call", "attributes"), USED)
def test_flower_still_has_it_and_takes_what_we_pass(name: str, call: str, attributes: str) -> None:
    part = look_up(name)
    # On the class itself, where a metaclass has them too: some are not set yet.
    known = dir(part) + dir(type(part))
    for attribute in attributes.split():
        assert attribute.strip(".") in known, f"{name} has no {attribute} any more"
    if call:
        passed = set(re.findall(r"\w+", call))
        parameters = inspect.signature(part).parameters
        assert passed <= set(parameters), f"{name} takes {parameters}, and we pass {call}"
        variadic = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
        for each in parameters.values():
            needed = each.default is each.empty and each.kind not in variadic
            assert not needed or each.name in passed, f"{name} needs {each}, and we pass {call}"


def test_a_client_of_the_runtime_api_is_made_as_the_worker_makes_it() -> None:
    make = look_up("flwr.supercore.runtime.RuntimeHttpClient").from_server_address
    values = {"insecure": True, "root_certificates": None, "interceptors": []}
    inspect.signature(make).bind(server_address="127.0.0.1:1", retry_invoker=None, **values)


def test_the_runtime_api_hands_out_replies_as_they_are_pulled_part_by_part() -> None:
    client = look_up("flwr.supercore.runtime.RuntimeHttpClient")
    made = client.from_server_address("127.0.0.1:1", True, None, [])
    assert made._client.timeout == httpx.Timeout(30)
    assert make_simple_http_retry_invoker().max_time is None
    assert {"PullMessages", "PullObject", "ConfirmMessageReceived"} <= set(dir(client))
    fields = {
        "messages_list": runtime_pb2.PullAppMessagesResponse,
        "message_object_trees": runtime_pb2.PullAppMessagesResponse,
        "object_found": message_pb2.PullObjectResponse,
        "object_available": message_pb2.PullObjectResponse,
        "object_content": message_pb2.PullObjectResponse,
        "last_activated_at": node_pb2.NodeInfo,
    }
    assert all(name in kind.DESCRIPTOR.fields_by_name for name, kind in fields.items())


def test_the_task_request_and_its_path_are_those_of_the_runtime_api() -> None:
    assert "supported_task_types" in runtime_pb2.AcquireTaskRequest.DESCRIPTOR.fields_by_name
    assert "token" in runtime_pb2.AcquireTaskResponse.DESCRIPTOR.fields_by_name
    _, service, method = worker._ACQUIRE.split("/")
    package, _, name = service.rpartition(".")
    assert package == runtime_pb2.DESCRIPTOR.package
    client = look_up("flwr.supercore.runtime.RuntimeHttpClient")
    source = inspect.getsource(inspect.getmodule(client))
    assert name in source and method in source


def test_the_options_that_the_command_adds_and_reads_are_there() -> None:
    parser = look_up("flwr.supernode.cli.flower_supernode._parse_args_run_supernode")()
    secret = ["--isolation", "process", "--superexec-auth-secret-file", "secret"]
    options = parser.parse_args(["--port", "9094", *secret])
    assert (options.host, options.port, options.ssl_ca_certfile) == ("127.0.0.1", 9094, None)


def test_the_loop_still_sleeps_and_fetches_by_the_names_that_are_replaced() -> None:
    loop = inspect.getsource(start_client_internal)
    assert "time.sleep(3)" in loop, "the SuperNode waits otherwise: see _shorten_pauses"
    fetch = start_client_internal._pull_and_store_message
    assert {"pull_object", "confirm_message_received"} <= set(inspect.signature(fetch).parameters)
    assert "run_id = _pull_and_store_message(\n                state=state," in loop
    assert "            _push_messages(\n                state=state," in loop


@pytest.mark.parametrize("name", ["pull_objects", "pull_and_inflate_object_from_tree"])
def test_the_backoff_is_still_a_keyword_with_a_default(name: str) -> None:
    defaults = getattr(inflatable_utils, name).__kwdefaults__
    assert "initial_backoff" in defaults, "see common.flower.shorten_backoff"


@pytest.mark.usefixtures("in_a_task")
def test_messages_keep_their_numbers_where_we_write_them() -> None:
    metadata = Message(RecordDict(), 1, MessageType.TRAIN).metadata
    metadata.__dict__["_message_id"], metadata.__dict__["_src_node_id"] = "7", 8
    assert (metadata.message_id, metadata.src_node_id) == ("7", 8)
