package cli

import (
	"archive/tar"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"connectrpc.com/connect"
	siroccov1 "github.com/sirocco-run/sirocco/proto/gen/sirocco/v1"
	"github.com/spf13/cobra"
	"google.golang.org/genproto/googleapis/api/httpbody"
)

func (a *app) nodeCommand() *cobra.Command {
	cmd := group("node", "Show and steer nodes (needs an operator's key)")
	var lift bool
	cordon := &cobra.Command{
		Use: "cordon NODE", Short: "Keep new sandboxes off a node", Args: exactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			client, err := a.connect()
			if err != nil {
				return err
			}
			resp, err := client.Nodes().Cordon(cmd.Context(), connect.NewRequest(&siroccov1.CordonNodeRequest{Name: args[0], Lift: lift}))
			if err != nil {
				return err
			}
			return a.printNodes([]*siroccov1.Node{resp.Msg})
		},
	}
	cordon.Flags().BoolVar(&lift, "lift", false, "let them on again")
	var region string
	list := &cobra.Command{
		Use: "ls", Short: "List nodes", Args: checked(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			client, err := a.connect()
			if err != nil {
				return err
			}
			resp, err := client.Nodes().List(cmd.Context(), connect.NewRequest(&siroccov1.ListNodesRequest{Region: region}))
			if err != nil {
				return err
			}
			return a.printNodes(resp.Msg.GetNodes())
		},
	}
	list.Flags().StringVar(&region, "region", "", "only those of this `region`")
	cmd.AddCommand(list, cordon, a.nodeDrainCommand())
	return cmd
}

func (a *app) printNodes(nodes []*siroccov1.Node) error {
	if a.json {
		return printMessages(a, nodes)
	}
	var rows [][]string
	for _, n := range nodes {
		state := "ready"
		switch {
		case n.GetDraining():
			state = "draining"
		case n.GetCordoned():
			state = "cordoned"
		case !n.GetReady():
			state = "not ready"
		}
		all, used := n.GetCapacity(), n.GetUsed()
		rows = append(rows, []string{
			n.GetName(), n.GetRegion(), state, fmt.Sprintf("%d/%d", n.GetLive(), all.GetSandboxes()),
			fmt.Sprintf("%d/%dm", used.GetCpuMillis(), all.GetCpuMillis()),
			size(used.GetMemoryBytes()) + "/" + size(all.GetMemoryBytes()), n.GetRuntime(), n.GetAddress(),
		})
	}
	return a.printTable([]string{"NODE", "REGION", "STATE", "SANDBOXES", "CPU", "MEMORY", "RUNTIME", "ADDRESS"}, rows)
}

func (a *app) imageCommand() *cobra.Command {
	cmd := group("image", "List, import and remove images")
	cmd.AddCommand(&cobra.Command{
		Use: "ls", Short: "List images that are at hand", Args: checked(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			client, err := a.connect()
			if err != nil {
				return err
			}
			resp, err := client.Images().List(cmd.Context(), connect.NewRequest(&siroccov1.ListImagesRequest{}))
			if err != nil {
				return err
			}
			return a.printImages(resp.Msg.GetImages())
		},
	}, &cobra.Command{
		Use: "import NAME FILE", Short: "Import an OCI layout (a folder or a tar) or a `docker save` archive; - is standard input", Args: exactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			from := a.In
			if args[1] != "-" {
				f, err := openArchive(args[1])
				if err != nil {
					return failed("name an archive, or the folder of an OCI layout, that is here.", "%w", err)
				}
				defer f.Close()
				from = f
			}
			image, err := a.importImage(cmd, args[0], from)
			if err != nil {
				return err
			}
			return a.printImages([]*siroccov1.Image{image})
		},
	}, &cobra.Command{
		Use: "rm NAME", Short: "Remove an imported image", Args: exactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			client, err := a.connect()
			if err != nil {
				return err
			}
			_, err = client.Images().Remove(cmd.Context(), connect.NewRequest(&siroccov1.RemoveImageRequest{Name: args[0]}))
			return err
		},
	})
	return cmd
}

// openArchive opens a file, or a folder as the archive of it.
func openArchive(path string) (io.ReadCloser, error) {
	info, err := os.Stat(path)
	if err != nil || !info.IsDir() {
		return os.Open(path)
	}
	r, w := io.Pipe()
	go func() {
		archive := tar.NewWriter(w)
		err := archive.AddFS(os.DirFS(path))
		if err == nil {
			err = archive.Close()
		}
		w.CloseWithError(err)
	}()
	return r, nil
}

// archiveChunk is how much of an archive goes into one message.
const archiveChunk = 256 << 10

func (a *app) importImage(cmd *cobra.Command, name string, from io.Reader) (*siroccov1.Image, error) {
	client, err := a.connect()
	if err != nil {
		return nil, err
	}
	stream := client.Images().Import(cmd.Context())
	msg := &siroccov1.ImportImageRequest{Name: name}
	buf := make([]byte, archiveChunk)
	for {
		n, rerr := io.ReadFull(from, buf)
		if rerr != nil && rerr != io.EOF && !errors.Is(rerr, io.ErrUnexpectedEOF) {
			return nil, fmt.Errorf("read the archive: %w", rerr)
		}
		msg.Body = &httpbody.HttpBody{ContentType: "application/x-tar", Data: buf[:n]}
		if err := stream.Send(msg); err != nil {
			if errors.Is(err, io.EOF) {
				break // the answer says why
			}
			return nil, err
		}
		msg = &siroccov1.ImportImageRequest{}
		if rerr != nil {
			break
		}
	}
	resp, err := stream.CloseAndReceive()
	if err != nil {
		return nil, err
	}
	return resp.Msg, nil
}

func (a *app) printImages(images []*siroccov1.Image) error {
	if a.json {
		return printMessages(a, images)
	}
	var rows [][]string
	for _, i := range images {
		made := "-"
		if i.GetCreatedAt() != nil {
			made = age(time.Since(i.GetCreatedAt().AsTime()))
		}
		rows = append(rows, []string{i.GetName(), i.GetSource(), size(i.GetSizeBytes()), made, dash(i.GetDigest())})
	}
	return a.printTable([]string{"IMAGE", "SOURCE", "SIZE", "AGE", "DIGEST"}, rows)
}
