"""Turns a run into files for a device, each compared with the network on real images."""

import sys

from edgeembed.callable_package import CallablePackage

sys.modules[__name__].__class__ = CallablePackage
