"""Files: read strictly, checked before they are used, replaced in one step, never a pickle."""
