package gvisor

// Describe writes the manifest of a checkpoint that a test has changed.
func Describe(dir string) error { return describeImage(dir) }
