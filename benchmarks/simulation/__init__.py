"""A simulation of many jobs on one key whose limit is not known. Time, network and API are numbers."""
