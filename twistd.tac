"""
What twistd runs: environment → Settings → service. `twistd -ny twistd.tac` stays in front.
"""

import sys

from twisted.application.service import Application
from twisted.internet import reactor

from service.app import make_service, preflight
from service.embedded.supervisor import NotReady
from service.logs import limit_log
from service.settings import InvalidSettings, load

try:
    settings = load()
    preflight(settings)
except (InvalidSettings, NotReady) as refusal:
    sys.exit(str(refusal))

limit_log(settings.log_level)
application = Application("rowcast")
make_service(settings, reactor).setServiceParent(application)
