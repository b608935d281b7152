"""`tests.base_run.config` as a file for the command line."""

from tests.base_run import config


def get_config():
    return config()
