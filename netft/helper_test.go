package netft

// helperMode names what a copy of this test's program is to do.
const helperMode = "LUNAR_NETFT_HELPER"

func helperMain(string) int { return 2 }
