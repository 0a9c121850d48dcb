"""Tests of bundles: entries in one file."""
