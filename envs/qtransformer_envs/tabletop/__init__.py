"""Language-conditioned tasks on a table: eight skills, six kinds of objects in six colours, a drawer.

Read `objects`, `scene` (what there is), `task` (what a skill is), one skill, then `env` (what Gymnasium sees).
Importing this package does nothing.
"""
