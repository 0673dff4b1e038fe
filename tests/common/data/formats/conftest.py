"""All formats are in the registry."""

from common.data.formats.registry import check_format

check_format("auto")
