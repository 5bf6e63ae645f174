"""The only room that knows autobahn."""

import txaio

txaio.use_twisted()  # autobahn's modules take their framework from here when they are imported
