package cluster

import (
	"net/url"
	"os"
	"path/filepath"
	"testing"
	"time"

	"go.etcd.io/etcd/client/pkg/v3/transport"
	"go.etcd.io/etcd/server/v3/embed"
	"go.uber.org/zap"
)

// pki writes a CA with one certificate for address and returns the paths of CA, certificate and key.
func pki(t *testing.T, address string) (ca, cert, key string) {
	t.Helper()
	dir := t.TempDir()
	authority, err := newAuthority("external", time.Now())
	must(t, err)
	k := newKey()
	c, err := authority.issue("etcd", address, k.Public(), time.Now())
	must(t, err)
	pem, err := keyPEM(k)
	must(t, err)
	ca, cert, key = filepath.Join(dir, "ca"), filepath.Join(dir, "cert"), filepath.Join(dir, "key")
	must(t, os.WriteFile(ca, certPEM(authority.cert), 0o600))
	must(t, os.WriteFile(cert, certPEM(c), 0o600))
	must(t, os.WriteFile(key, pem, 0o600))
	return ca, cert, key
}

// external runs an etcd of its own, with mutual TLS.
func external(t *testing.T, address string, info transport.TLSInfo) string {
	t.Helper()
	at, stop := externalIn(t, t.TempDir(), address, info)
	t.Cleanup(stop)
	return at
}

func externalIn(t *testing.T, dir, address string, info transport.TLSInfo) (at string, stop func()) {
	t.Helper()
	cfg := embed.NewConfig()
	cfg.Name, cfg.Dir = "outside", dir
	client := endpoint(address, clientPort)
	if info.Empty() {
		client.Scheme = "http"
	}
	peer := url.URL{Scheme: "http", Host: hostPort(address, peerPort)}
	cfg.ListenClientUrls, cfg.AdvertiseClientUrls = []url.URL{client}, []url.URL{client}
	cfg.ListenPeerUrls, cfg.AdvertisePeerUrls = []url.URL{peer}, []url.URL{peer}
	cfg.InitialCluster = "outside=" + peer.String()
	cfg.ClientTLSInfo = info
	cfg.ZapLoggerBuilder = embed.NewZapLoggerBuilder(zap.NewNop())
	server, err := embed.StartEtcd(cfg)
	must(t, err)
	<-server.Server.ReadyNotify()
	return client.String(), server.Close
}

func TestExternalEtcd(t *testing.T) {
	t.Parallel()
	address := newAddress()
	ca, cert, key := pki(t, address)
	at := external(t, address, transport.TLSInfo{CertFile: cert, KeyFile: key, TrustedCAFile: ca, ClientCertAuth: true})
	node := func(name string) *DB {
		o := nodeOptions(t, name)
		o.Config.Endpoints, o.Config.CAFile, o.Config.CertFile, o.Config.KeyFile = []string{at}, ca, cert, key
		return openNode(t, o)
	}
	a, b := node("a"), node("b")
	must(t, a.Init(t.Context()))
	must(t, a.Append(t.Context(), Event{Text: "x"}))
	must(t, b.Join(t.Context(), "", newTokenOf(t, a)))
	sees(t, b, "x")
	sealed := b.Seal("s", "u")
	_, err := a.Unseal(sealed, "u")
	must(t, err)
	st, err := b.Status(t.Context())
	must(t, err)
	if len(st.Members) != 2 || st.Voters != 0 || !st.Members[0].Alive || b.Number() != 2 {
		t.Fatalf("%+v", st)
	}
	o := b.options
	must(t, b.Close())
	b = openNode(t, o)
	must(t, b.Leave(t.Context(), false))
	members, err := a.Members(t.Context())
	must(t, err)
	if len(members) != 1 {
		t.Fatalf("%+v", members)
	}
}
