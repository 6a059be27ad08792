package datapath

const childEnv = "LUNAR_DATAPATH_CHILD"

func child() {}
