// Package sirocco is the Go client of Sirocco: it creates sandboxes, runs
// commands in them, moves files, and follows what happens.
//
//	client, err := sirocco.New(sirocco.Config{API: "http://127.0.0.1:7070", Key: "sk_…"})
//	sandbox, err := client.Create(ctx, &siroccov1.CreateSandboxRequest{Image: "base"})
//	defer sandbox.Terminate(context.WithoutCancel(ctx), "done")
//	end, err := sandbox.Run(ctx, sirocco.Command{Args: []string{"uname", "-a"}, Stdout: os.Stdout})
//
// Requests and records are the messages of package siroccov1. Every error is
// an *Error. What has to be sent again after a lost connection is sent again
// in a way that does nothing twice: creates carry an idempotency key, processes
// an id, input and output their offsets.
//
// All types are safe for concurrent use.
package sirocco
