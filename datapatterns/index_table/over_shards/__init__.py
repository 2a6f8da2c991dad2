"""Index tables sharded by their own key: claim before the commit, forget after it."""
