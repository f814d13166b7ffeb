"""Preloaded by the fork server of test_damaged_files.py: importing it leaves every module loaded."""

import damage_fixtures

damage_fixtures.warm_up()
