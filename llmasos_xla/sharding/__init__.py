"""Sharding: one program over many devices.

pipeline    layers in stages, one after the other on different devices
"""
