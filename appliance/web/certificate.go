package web

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	"math/big"
	"net"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"lunar/appliance/api"
)

// The life of a certificate that lunard makes itself, and how often it is looked at.
const (
	certificateLife = 90 * 24 * time.Hour
	renewBefore     = certificateLife / 3
	lookAgain       = time.Minute
	issueLimit      = 5 * time.Second
)

// Authority signs certificates for browsers; the cluster does.
type Authority interface {
	// CA is its certificate now, nil while there is none.
	CA() *x509.Certificate
	// WebCertificate signs.
	WebCertificate(ctx context.Context, names []string, ips []net.IP, public crypto.PublicKey, life time.Duration) (cert, ca *x509.Certificate, err error)
}

// CertificateOptions say where a certificate comes from: CertFile and KeyFile, in PEM, if they are given; or else Authority;
// or else, where that has no CA, it signs itself. What is made is kept in Path.
type CertificateOptions struct {
	CertFile, KeyFile string
	Path              string // mode 0600: key and certificates, PEM
	Node              string
	IPs               func() []net.IP // by which browsers may come
	Authority         Authority
	Log               *slog.Logger
}

// Certificates gives the certificate of the present moment: files that were replaced and a cluster that was joined count
// without a restart.
type Certificates struct {
	o CertificateOptions

	mu     sync.Mutex // guards what follows
	now    *tls.Certificate
	looked time.Time
}

// NewCertificates fails if there is no certificate.
func NewCertificates(ctx context.Context, o CertificateOptions) (*Certificates, error) {
	c := &Certificates{o: o}
	if err := c.look(ctx); err != nil {
		return nil, fmt.Errorf("web: certificate: %w", err)
	}
	return c, nil
}

// TLS is for the listener.
func (c *Certificates) TLS() *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS12, NextProtos: []string{"h2", "http/1.1"},
		GetCertificate: func(hello *tls.ClientHelloInfo) (*tls.Certificate, error) { return c.present(hello.Context()), nil },
	}
}

func (c *Certificates) present(ctx context.Context) *tls.Certificate {
	c.mu.Lock()
	defer c.mu.Unlock()
	if time.Since(c.looked) > lookAgain {
		if err := c.look(ctx); err != nil {
			c.o.Log.Warn("the web console keeps its certificate", "error", err)
		}
	}
	return c.now
}

// look chooses the certificate; the caller holds mu. On failure the last one stays.
func (c *Certificates) look(ctx context.Context) error {
	c.looked = time.Now()
	if c.o.CertFile != "" {
		pair, err := tls.LoadX509KeyPair(c.o.CertFile, c.o.KeyFile)
		if err == nil {
			c.now = &pair
		}
		return err
	}
	if c.now == nil {
		if pair, err := tls.LoadX509KeyPair(c.o.Path, c.o.Path); err == nil {
			c.now = &pair
		}
	}
	if c.now != nil && c.good(c.now.Leaf) {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, issueLimit)
	defer cancel()
	return c.issue(ctx)
}

// good tells whether a certificate that was made can stay.
func (c *Certificates) good(leaf *x509.Certificate) bool {
	issuer := leaf
	if ca := c.o.Authority.CA(); ca != nil {
		issuer = ca
	}
	if issuer == leaf && leaf.Subject.String() != leaf.Issuer.String() {
		return false // of a cluster that the node has left
	}
	if issuer != leaf && leaf.CheckSignatureFrom(issuer) != nil || time.Until(leaf.NotAfter) < renewBefore {
		return false
	}
	return !slices.ContainsFunc(c.o.IPs(), func(ip net.IP) bool { return leaf.VerifyHostname(ip.String()) != nil })
}

func (c *Certificates) issue(ctx context.Context) error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	chain, err := c.sign(ctx, key)
	if err != nil {
		return err
	}
	pair := tls.Certificate{PrivateKey: key, Leaf: chain[0]}
	for _, one := range chain {
		pair.Certificate = append(pair.Certificate, one.Raw)
	}
	c.now = &pair
	return c.keep(key, chain)
}

func (c *Certificates) sign(ctx context.Context, key *ecdsa.PrivateKey) ([]*x509.Certificate, error) {
	names := []string{c.o.Node, "localhost"}
	if host, err := os.Hostname(); err == nil && host != c.o.Node {
		names = append(names, host)
	}
	if c.o.Authority.CA() != nil {
		cert, ca, err := c.o.Authority.WebCertificate(ctx, names, c.o.IPs(), key.Public(), certificateLife)
		return []*x509.Certificate{cert, ca}, err
	}
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
	if err != nil {
		return nil, err
	}
	template := &x509.Certificate{
		SerialNumber: serial, Subject: pkix.Name{Organization: []string{"Lunar"}, CommonName: "Web console of " + c.o.Node},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(certificateLife),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		BasicConstraintsValid: true, DNSNames: names, IPAddresses: c.o.IPs(),
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return nil, err
	}
	cert, err := x509.ParseCertificate(der)
	return []*x509.Certificate{cert}, err
}

// keep writes the certificate for the next start, whole or not at all.
func (c *Certificates) keep(key *ecdsa.PrivateKey, chain []*x509.Certificate) error {
	raw, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return err
	}
	data := pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: raw})
	for _, one := range chain {
		data = append(data, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: one.Raw})...)
	}
	part := c.o.Path + ".new"
	if err := os.WriteFile(part, data, 0o600); err != nil {
		return errors.Join(err, os.Remove(part))
	}
	return os.Rename(part, c.o.Path)
}

// Describe tells what browsers are shown.
func (c *Certificates) Describe(ctx context.Context) *api.WebCertificate {
	leaf := c.present(ctx).Leaf
	out := &api.WebCertificate{Subject: leaf.Subject.CommonName, Issuer: leaf.Issuer.CommonName, Names: slices.Clone(leaf.DNSNames), NotAfter: leaf.NotAfter}
	for _, ip := range leaf.IPAddresses {
		out.Names = append(out.Names, ip.String())
	}
	sum := sha256.Sum256(leaf.Raw)
	out.SHA256 = strings.ToUpper(hex.EncodeToString(sum[:]))
	return out
}
