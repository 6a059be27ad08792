package web

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"log/slog"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// authority is a cluster's CA, or none.
type authority struct {
	ca  *x509.Certificate
	key *ecdsa.PrivateKey
}

func newAuthority(t *testing.T, name string) *authority {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	a := &authority{key: key}
	a.ca = a.sign(t, &x509.Certificate{Subject: pkix.Name{CommonName: name}, IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}, nil, key.Public())
	return a
}

func (a *authority) sign(t *testing.T, template, parent *x509.Certificate, public crypto.PublicKey) *x509.Certificate {
	template.SerialNumber = big.NewInt(time.Now().UnixNano())
	template.NotBefore = time.Now().Add(-time.Hour)
	if template.NotAfter.IsZero() {
		template.NotAfter = time.Now().Add(24 * time.Hour)
	}
	if parent == nil {
		parent = template
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, public, a.key)
	if err == nil {
		template, err = x509.ParseCertificate(der)
	}
	if err != nil {
		t.Fatal(err)
	}
	return template
}

type cluster struct {
	t *testing.T
	a *authority // nil: none
	n int
}

func (c *cluster) CA() *x509.Certificate {
	if c.a == nil {
		return nil
	}
	return c.a.ca
}

func (c *cluster) WebCertificate(_ context.Context, names []string, ips []net.IP, public crypto.PublicKey, life time.Duration) (cert, ca *x509.Certificate, err error) {
	c.n++
	return c.a.sign(c.t, &x509.Certificate{Subject: pkix.Name{CommonName: "web"}, DNSNames: names, IPAddresses: ips, NotAfter: time.Now().Add(life)}, c.a.ca, public), c.a.ca, nil
}

// TestCertificates: kept over a restart, and another one when the cluster or the addresses are others.
func TestCertificates(t *testing.T) {
	ips := []net.IP{net.IPv4(192, 0, 2, 1)}
	c := &cluster{t: t}
	o := CertificateOptions{Path: filepath.Join(t.TempDir(), "web.pem"), Node: "n1", IPs: func() []net.IP { return ips }, Authority: c, Log: slog.New(slog.DiscardHandler)}
	look := func() *x509.Certificate {
		t.Helper()
		all, err := NewCertificates(t.Context(), o)
		if err != nil {
			t.Fatal(err)
		}
		leaf := all.present(t.Context()).Leaf
		for _, name := range []string{"n1", "localhost", ips[0].String()} {
			if err := leaf.VerifyHostname(name); err != nil {
				t.Error(err)
			}
		}
		return leaf
	}
	alone := look()
	if !alone.Equal(look()) || alone.IsCA {
		t.Error("its own was not kept, or is a CA")
	}
	if info, err := os.Stat(o.Path); err != nil || info.Mode().Perm() != 0o600 {
		t.Error(info, err)
	}
	c.a = newAuthority(t, "first")
	member := look()
	if member.CheckSignatureFrom(c.a.ca) != nil || !member.Equal(look()) || c.n != 1 {
		t.Errorf("not by the cluster's CA, or not kept: %d were made", c.n)
	}
	ips = []net.IP{net.IPv4(192, 0, 2, 2)}
	if look().Equal(member) {
		t.Error("not for the new address")
	}
	c.a = newAuthority(t, "second")
	if look().CheckSignatureFrom(c.a.ca) != nil {
		t.Error("not by the second cluster's CA")
	}
	c.a = nil
	if left := look(); left.Issuer.String() != left.Subject.String() {
		t.Error("by the CA of a cluster that it left")
	}
	o.CertFile, o.KeyFile = o.Path, filepath.Join(t.TempDir(), "missing")
	if _, err := NewCertificates(t.Context(), o); err == nil {
		t.Error("without its key")
	}
}
