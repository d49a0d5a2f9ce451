// Package compose tests the two regions of compose.yaml in containers, as
// `make compose-test` starts them: real gVisor, NATS clusters of three, killed
// containers and cut networks. It needs root and a Docker engine, and is built
// with the tag compose only.
package compose
