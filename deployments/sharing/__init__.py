"""Early states of images (`cache: similar`), shared by the replicas of a deployment through Redis."""
