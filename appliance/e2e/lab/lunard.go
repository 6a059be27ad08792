package lab

import (
	"cmp"
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// Lunard is a node: lunard with a state folder, a socket, a configuration and ports of its own.
// Kill, Stop and Start keep all of these, so that a restart is what an operator would see.
type Lunard struct {
	Address string
	Ports   []int
	// ConfigPath and Socket are what --config and lunarctl's --socket get.
	ConfigPath, Socket string
	// Process is the running daemon; Start replaces it.
	*Process

	lab  *Lab
	name string
	host *Host
}

// Config is what a test may want of a node; the zero value gives one portal at a free port.
type Config struct {
	Name    string // of the node and its files; "" is "lab"
	Host    *Host  // nil is the lab's own namespace
	Address string // of the portals; "" is 127.0.0.1
	Portals int    // 0 is 1
	Port    int    // of the first portal, if it is free
	Extra   string // added to the configuration file
}

// Lunard starts a node.
func (l *Lab) Lunard(ctx context.Context, c Config) (*Lunard, error) {
	ports, err := freePorts(max(c.Portals, 1))
	if err != nil {
		return nil, err
	}
	n := &Lunard{Address: cmp.Or(c.Address, "127.0.0.1"), Ports: ports, lab: l, name: cmp.Or(c.Name, "lab"), host: c.Host}
	n.ConfigPath, n.Socket = n.path("lunard.toml"), n.path("sock")
	if c.Port != 0 && (c.Host != nil || free(n.Address, c.Port)) {
		ports[0] = c.Port
	}
	if err := os.WriteFile(n.ConfigPath, []byte(n.config()+c.Extra), 0o600); err != nil {
		return nil, fmt.Errorf("lunard: %w", err)
	}
	err = n.Start(ctx)
	return n, err
}

// path is a path of the node's own in the lab's folder.
func (n *Lunard) path(name string) string { return n.lab.Path(n.name + "-" + name) }

func (n *Lunard) config() string {
	portals := make([]string, len(n.Ports))
	for i, port := range n.Ports {
		portals[i] = strconv.Quote(net.JoinHostPort(n.Address, strconv.Itoa(port)))
	}
	return fmt.Sprintf(`state_dir = %q
socket = %q

[node]
name = %q

[metrics]
listen = ""

[iscsi]
portals = [%s]
`, n.path("state"), n.Socket, n.name, strings.Join(portals, ", "))
}

// Start starts the daemon, again after a Stop or Kill, and waits until it says READY, as systemd would.
func (n *Lunard) Start(ctx context.Context) error {
	ready, err := listenNotify(n.path("notify"))
	if err != nil {
		return err
	}
	defer ready.Close() //nolint:errcheck // nothing is lost
	env := []string{"NOTIFY_SOCKET=" + n.path("notify")}
	n.Process, err = n.lab.startWith(env, n.host.command(filepath.Join(n.lab.Bin, "lunard"), "--config", n.ConfigPath)...)
	if err != nil {
		return err
	}
	if err := awaitReady(ctx, ready, n.Process); err != nil {
		return fmt.Errorf("lunard: %w\n%s", err, n.Log())
	}
	return nil
}

// Ctl runs lunarctl against the node and returns what it printed.
func (n *Lunard) Ctl(ctx context.Context, args ...string) (string, error) {
	return n.CtlInput(ctx, "", args...)
}

// CtlInput is Ctl with input on lunarctl's standard input.
func (n *Lunard) CtlInput(ctx context.Context, input string, args ...string) (string, error) {
	argv := append([]string{filepath.Join(n.lab.Bin, "lunarctl"), "--socket", n.Socket}, args...)
	return RunInput(ctx, input, argv...)
}

// Script runs lunarctl once per line, words split at spaces, up to the first failure.
func (n *Lunard) Script(ctx context.Context, lines ...string) error {
	for _, line := range lines {
		if _, err := n.Ctl(ctx, strings.Fields(line)...); err != nil {
			return err
		}
	}
	return nil
}

// Export names a LUN of the node at each of its portals.
func (n *Lunard) Export(iqn string, lun int) *Export {
	return export(n.Process, n.Address, iqn, lun, n.Ports...)
}

// ServeImage formats device as Volume1 and exports a new image of that size on it as LUN 0 of iqn.
func (n *Lunard) ServeImage(ctx context.Context, device, size, iqn string) (*Export, error) {
	return n.ServeImageOn(ctx, "Volume1", device, size, iqn)
}

// ServeImageOn is ServeImage with another name for the volume.
func (n *Lunard) ServeImageOn(ctx context.Context, volume, device, size, iqn string) (*Export, error) {
	image := volume + "/disk.img"
	err := n.Script(ctx,
		"volume add "+device+" --name "+volume+" --format xfs",
		"image create "+image+" --size "+size,
		"target create "+iqn,
		"target map "+iqn+" "+image+" --lun 0")
	if err != nil {
		return nil, err
	}
	return n.Export(iqn, 0), nil
}
