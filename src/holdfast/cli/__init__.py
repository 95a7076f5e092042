"""The command `holdfast`: one file a verb."""
