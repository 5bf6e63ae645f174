"""The only room that knows autobahn."""

import txaio

txaio.use_twisted()  # before any import of autobahn, whose modules choose their framework by this
