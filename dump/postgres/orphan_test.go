package postgres

func orphanCluster(dir string) {}
