"""Measures how fast the files of a bundle are on this machine, and what they keep of their teacher's quality."""

import sys

from edgeembed.callable_package import CallablePackage

sys.modules[__name__].__class__ = CallablePackage
