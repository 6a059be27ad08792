package cluster

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"time"
)

// The paths of the node API that this package answers; all others are Options.NodeAPI's.
const (
	pathJoin = "/cluster/v1/join" // POST, the only one without a client certificate
	pathPing = "/cluster/v1/ping"
)

// The bounds of the node API towards strangers.
const (
	maxJoinBody     = 64 << 10
	headerTimeout   = 5 * time.Second
	joinTimeout     = 30 * time.Second
	idleTimeout     = time.Minute
	maxHeaderBytes  = 64 << 10
	shutdownTimeout = time.Second
	maxNodeConns    = 512
)

// nodeServer answers on NodePort.
type nodeServer struct {
	http     *http.Server
	listener net.Listener
	log      *slog.Logger
}

func (db *DB) serveNodes(s *self) (*nodeServer, error) {
	id := s.identity()
	address := id.Address
	if id.Family != FamilyByHand { // who joins has no way to a cluster address yet
		address = db.options.joins
	}
	listener, err := net.Listen("tcp", hostPort(address, nodePort))
	if err != nil {
		return nil, addressError(err, address)
	}
	mux := http.NewServeMux()
	mux.HandleFunc("POST "+pathJoin, db.handleJoin)
	mux.Handle(pathPing, db.membersOnly(http.HandlerFunc(db.handlePing)))
	if db.options.NodeAPI != nil {
		mux.Handle("/", db.membersOnly(db.options.NodeAPI))
	}
	n := &nodeServer{log: db.log, listener: limited(listener, maxNodeConns), http: &http.Server{
		Handler: mux, TLSConfig: db.serverTLS(s, tls.RequestClientCert), ReadHeaderTimeout: headerTimeout,
		IdleTimeout: idleTimeout, MaxHeaderBytes: maxHeaderBytes, ErrorLog: slog.NewLogLogger(db.log.Handler(), slog.LevelDebug),
	}}
	return n, nil
}

// run serves until ctx ends; requests in progress have shutdownTimeout to end.
func (n *nodeServer) run(ctx context.Context) {
	var done sync.WaitGroup
	done.Go(func() {
		if err := n.http.ServeTLS(n.listener, "", ""); !errors.Is(err, http.ErrServerClosed) {
			n.log.Error("the node API ended", "err", err)
		}
	})
	<-ctx.Done()
	last, cancel := context.WithTimeout(context.WithoutCancel(ctx), shutdownTimeout)
	defer cancel()
	if n.http.Shutdown(last) != nil {
		_ = n.http.Close()
	}
	done.Wait()
}

// limitListener closes connections beyond a number.
type limitListener struct {
	net.Listener
	slots chan struct{}
}

func limited(l net.Listener, n int) net.Listener {
	return &limitListener{l, make(chan struct{}, n)}
}

// Accept implements net.Listener.
func (l *limitListener) Accept() (net.Conn, error) {
	for {
		c, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		select {
		case l.slots <- struct{}{}:
			return &limitedConn{Conn: c, free: sync.OnceFunc(func() { <-l.slots })}, nil
		default:
			_ = c.Close() // a node asks again; a flood does not get in
		}
	}
}

type limitedConn struct {
	net.Conn
	free func()
}

// Close implements net.Conn.
func (c *limitedConn) Close() error {
	c.free()
	return c.Conn.Close()
}

// Caller is the node that sent a request to the node API, "" if it showed no certificate.
func Caller(r *http.Request) string {
	if r.TLS == nil || len(r.TLS.PeerCertificates) == 0 {
		return ""
	}
	return r.TLS.PeerCertificates[0].Subject.CommonName
}

// membersOnly looks at every request, since a connection may be older than a revocation.
func (db *DB) membersOnly(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case Caller(r) == "":
			refuse(w, http.StatusUnauthorized, "certificate", "only nodes of this cluster may ask that")
		case db.revoked.has(r.TLS.PeerCertificates[0]):
			refuse(w, http.StatusForbidden, "certificate", "this node was evicted from the cluster")
		default:
			next.ServeHTTP(w, r)
		}
	})
}

// ping is what a node tells of itself.
type ping struct {
	Node  string `json:"node"`
	Voter bool   `json:"voter"` // its etcd member runs and has not died
}

func (db *DB) handlePing(w http.ResponseWriter, _ *http.Request) {
	m, _ := db.running()
	answer(w, ping{Node: db.node, Voter: m != nil && m.alive()})
}

func (m *member) alive() bool {
	select {
	case <-m.died:
		return false
	case <-m.ended():
		return false
	default:
		return true
	}
}

// refusal is the body of every answer that is not 200.
type refusal struct {
	Code string `json:"code"` // of refusals
	Text string `json:"text"`
}

// refusals are the errors that keep their identity on the way to another node.
var refusals = map[string]error{
	"token": ErrToken, "exists": ErrExists, "full": ErrFull, "conflict": ErrConflict, "certificate": ErrCertificate,
	"unavailable": ErrUnavailable, "damaged": ErrDamaged, "alone": ErrAlone, "not-found": ErrNotFound, "in-use": ErrInUse,
	"address": ErrAddress,
}

func refuse(w http.ResponseWriter, status int, code, text string) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(refusal{code, text})
}

func answer(w http.ResponseWriter, value any) {
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(value)
}

func refuseWith(w http.ResponseWriter, err error) {
	for code, sentinel := range refusals {
		if errors.Is(err, sentinel) {
			refuse(w, http.StatusConflict, code, err.Error())
			return
		}
	}
	refuse(w, http.StatusInternalServerError, "", err.Error())
}

// remoteError is a refusal as it came from another node.
type remoteError struct {
	text string
	is   error // may be nil
}

// Error implements error.
func (e *remoteError) Error() string { return e.text }

// Unwrap gives the sentinel.
func (e *remoteError) Unwrap() error { return e.is }

// readAnswer decodes what another node answered.
func readAnswer(resp *http.Response, value any) error {
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxRecordSize))
	if err != nil {
		return err
	}
	if resp.StatusCode == http.StatusOK {
		return json.Unmarshal(body, value)
	}
	var r refusal
	if json.Unmarshal(body, &r) != nil || r.Text == "" {
		return fmt.Errorf("it answers %s: it is no node of this release of Lunar", resp.Status)
	}
	return &remoteError{r.Text, refusals[r.Code]}
}
