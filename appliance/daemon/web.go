package daemon

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"sync"
	"time"

	"golang.org/x/net/netutil"

	"lunar/appliance/api"
	"lunar/appliance/cluster"
	"lunar/appliance/config"
	"lunar/appliance/web"
)

// The bounds of the web console's server.
const (
	webConnections = 256
	webAgain       = 2 * time.Second // after which it is tried again, where the address or the certificate was missing
	webFile        = "web.pem"       // in the state directory: key and certificate
)

// webConsole runs the console. It never keeps lunard from its work: what is wrong with it is logged and told, and tried again.
type webConsole struct {
	config config.Web
	node   *Node
	log    *slog.Logger

	mu     sync.Mutex // guards what follows
	server *http.Server
	site   *web.Console
	certs  *web.Certificates // nil: no TLS
	at     net.Addr          // nil: it does not listen
	why    error
}

// keepWeb serves the console until ctx ends.
func (d *Daemon) keepWeb(ctx context.Context, calls http.Handler) {
	w := d.node.web
	for w.config.Address != "" {
		listener, err := w.open(ctx, calls)
		if err == nil {
			stop := context.AfterFunc(ctx, w.close)
			err = w.server.Serve(listener)
			stop()
		}
		w.tell(err)
		select {
		case <-ctx.Done():
			return
		case <-time.After(webAgain):
		}
	}
}

// close ends the server, with the streams that it has: pages notice and say so.
func (w *webConsole) close() { _ = w.server.Close() }

// tell notes why the console does not serve, in the log once.
func (w *webConsole) tell(err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.at = nil
	if errors.Is(err, http.ErrServerClosed) {
		return
	}
	if w.why == nil || w.why.Error() != err.Error() {
		w.log.Error("the web console does not serve; it is tried again", "address", w.config.Address, "error", err)
	}
	w.why = err
}

func (w *webConsole) open(ctx context.Context, calls http.Handler) (net.Listener, error) {
	site, err := web.New(web.Options{API: calls, Users: w.node, Secure: w.config.TLS(), Node: w.node.name, Log: w.log})
	if err != nil {
		return nil, err
	}
	listener, err := new(net.ListenConfig).Listen(ctx, "tcp", w.config.Address)
	if err != nil {
		return nil, fmt.Errorf("web.address: %w", err)
	}
	at := listener.Addr()
	listener = netutil.LimitListener(listener, webConnections)
	var certs *web.Certificates
	if w.config.TLS() {
		if certs, err = w.certificates(ctx, at); err != nil {
			return nil, errors.Join(err, listener.Close())
		}
		listener = tls.NewListener(listener, certs.TLS()) //nolint:contextcheck // each handshake has its own
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.server = &http.Server{
		Handler: site.Handler(), ReadHeaderTimeout: 10 * time.Second, IdleTimeout: time.Minute, MaxHeaderBytes: 16 << 10,
		ErrorLog: slog.NewLogLogger(w.log.Handler(), slog.LevelDebug),
	}
	w.site, w.certs, w.at, w.why = site, certs, at, nil
	w.log.Info("the web console serves", "address", at.String(), "tls", certs != nil)
	return listener, nil
}

func (w *webConsole) certificates(ctx context.Context, at net.Addr) (*web.Certificates, error) {
	return web.NewCertificates(ctx, web.CertificateOptions{
		CertFile: w.config.CertFile, KeyFile: w.config.KeyFile, Path: filepath.Join(w.node.stateDir, webFile), Node: w.node.name,
		IPs: func() []net.IP { return steadyAddresses(at) }, Authority: w.node.db, Log: w.log,
	})
}

// steadyAddresses are those of the listener that a browser may use.
func steadyAddresses(at net.Addr) []net.IP {
	tcp, ok := at.(*net.TCPAddr)
	if !ok {
		return nil
	}
	return slices.DeleteFunc(addressesOf(tcp.IP), net.IP.IsLinkLocalUnicast)
}

// Web implements server.Web.
func (n *Node) Web(ctx context.Context) (api.Web, error) {
	w := n.web
	w.mu.Lock()
	at, site, certs, why := w.at, w.site, w.certs, w.why
	w.mu.Unlock()
	out := api.Web{Node: n.name, TLS: w.config.TLS()}
	switch {
	case w.config.Address == "":
		out.TLS, out.Reason = false, "web.address is not set in the configuration"
	case at == nil:
		out.Reason = "it is starting"
		if why != nil {
			out.Reason = why.Error()
		}
	default:
		out.Address, out.Sessions = at.String(), site.Sessions()
		if certs != nil {
			out.Certificate = certs.Describe(ctx)
		}
	}
	return out, nil
}

// WebUser implements web.Users.
func (n *Node) WebUser(ctx context.Context, name string) (web.User, error) {
	u, err := n.db.WebUser(ctx, name)
	if errors.Is(err, cluster.ErrNotFound) {
		return web.User{}, web.ErrNoUser
	}
	return web.User{Name: u.Name, Role: u.Role, Hash: u.Hash, Version: strconv.FormatInt(u.Revision, 10)}, err
}

// WebUsers implements server.Web.
func (n *Node) WebUsers(ctx context.Context) ([]api.WebUser, error) {
	all, err := n.db.WebUsers(ctx)
	out := make([]api.WebUser, len(all))
	for i := range all {
		out[i] = api.WebUser{Name: all[i].Name, Role: all[i].Role, Changed: all[i].Changed}
	}
	return out, refusal(err)
}

var webName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._@-]{0,62}$`)

// AddWebUser implements server.Web.
func (n *Node) AddWebUser(ctx context.Context, r api.AddWebUser) (api.WebUser, error) {
	switch {
	case !webName.MatchString(r.Name):
		return api.WebUser{}, api.Errorf(api.Invalid, "%q is no name for a user", r.Name).WithHint("use 1 to 63 letters, digits, '.', '_', '-' and '@', a letter or digit first")
	case r.Role != api.WebAdmin && r.Role != api.WebReadOnly:
		return api.WebUser{}, api.Errorf(api.Invalid, "%q is no role", r.Role).WithHint("use %s or %s", api.WebAdmin, api.WebReadOnly)
	}
	if err := web.CheckPassword(r.Password); err != nil {
		return api.WebUser{}, api.Errorf(api.Invalid, "%v", err)
	}
	if err := n.db.AddWebUser(ctx, cluster.WebUser{Name: r.Name, Role: r.Role, Hash: web.Hash(r.Password)}); err != nil {
		return api.WebUser{}, refusal(err)
	}
	n.note(ctx, cluster.Event{Kind: "web.user-add", Text: fmt.Sprintf("user %s of the web console added, %s", r.Name, r.Role)})
	return api.WebUser{Name: r.Name, Role: r.Role, Changed: time.Now().UTC()}, nil
}

// SetWebPassword implements server.Web.
func (n *Node) SetWebPassword(ctx context.Context, name, password string) error {
	if err := web.CheckPassword(password); err != nil {
		return api.Errorf(api.Invalid, "%v", err)
	}
	if err := n.db.SetWebUserHash(ctx, name, web.Hash(password)); err != nil {
		return refusal(err)
	}
	n.note(ctx, cluster.Event{Kind: "web.user-password", Text: fmt.Sprintf("user %s of the web console has another password", name)})
	return nil
}

// RemoveWebUser implements server.Web.
func (n *Node) RemoveWebUser(ctx context.Context, name string) error {
	if err := n.db.RemoveWebUser(ctx, name); err != nil {
		return refusal(err)
	}
	n.note(ctx, cluster.Event{Kind: "web.user-remove", Text: fmt.Sprintf("user %s of the web console removed", name)})
	return nil
}
