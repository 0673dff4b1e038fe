"""The typed settings of every command.

The YAML files under ``conf/`` hold the values, the dataclasses here their names, types and ranges.
A value of the wrong type or an unknown name is refused when the settings are composed.
Every name of these modules can be imported from here.
"""

from common.config.commands import *  # noqa: F403
from common.config.composition import *  # noqa: F403
from common.config.extract import *  # noqa: F403
from common.config.ranges import *  # noqa: F403
from common.config.schema import *  # noqa: F403
from common.config.strategy import *  # noqa: F403
from common.config.typed import *  # noqa: F403
