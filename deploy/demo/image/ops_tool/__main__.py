"""``ops-tool build | test | deploy | backup | upgrade``: does that for the add-on, and exits 0 if it went well."""

from __future__ import annotations

import argparse
import logging
import sys

from . import backup, build, deploy, test, upgrade
from .context import Context, ToolError, configure_logging

COMMANDS = {
    "build": build.run,
    "test": test.run,
    "deploy": deploy.run,
    "backup": backup.run,
    "upgrade": upgrade.run,
}


def main() -> int:
    parser = argparse.ArgumentParser("ops-tool", description=__doc__)
    parser.add_argument("command", choices=COMMANDS)
    command = parser.parse_args().command
    context = Context.from_environ()
    configure_logging(context.workspace)
    log = logging.getLogger(f"ops.{command}")
    log.info("run %s of %s for Odoo %s", context.run_number, context.project, context.odoo_version)
    try:
        COMMANDS[command](context, log)
    except ToolError as error:
        log.error("%s", error)  # noqa: TRY400 - the message says all; a traceback would only hide it
        return 1
    except Exception:
        log.exception("%s failed", command)
        return 1
    else:
        return 0
    finally:
        for path in sorted(context.artifacts.iterdir()):
            log.info("artifact %s, %s bytes", path.name, f"{path.stat().st_size:,}")


if __name__ == "__main__":
    sys.exit(main())
