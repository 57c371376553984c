"""Other people's networks as models of ours."""
