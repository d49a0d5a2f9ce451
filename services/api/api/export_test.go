package api

// ReadConnectError is for tests: it reads the body of a Connect error.
var ReadConnectError = readConnectError
