package cluster

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"time"
)

// Certificates begin a day before they are made, so that clocks may differ by that much. They last
// long because the cluster's own revocation list, not their end, is what takes them out of use.
const (
	backdate     = 24 * time.Hour
	caLifetime   = 30 * 365 * 24 * time.Hour
	nodeLifetime = 10 * 365 * 24 * time.Hour
	renewBefore  = nodeLifetime / 3 // a node renews its certificate when less is left
	serialBits   = 127
)

// authority is the cluster's certification authority.
type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

// fingerprint of a certificate, SHA-256 of its DER form.
type fingerprint [sha256.Size]byte

func newSerial() *big.Int {
	n, _ := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), serialBits)) // never fails
	return n.Add(n, big.NewInt(1))
}

func newKey() *ecdsa.PrivateKey {
	key, _ := ecdsa.GenerateKey(elliptic.P256(), rand.Reader) // never fails with this reader
	return key
}

// newAuthority makes the CA of a new cluster.
func newAuthority(clusterID string, now time.Time) (*authority, error) {
	key := newKey()
	template := &x509.Certificate{
		SerialNumber:          newSerial(),
		Subject:               pkix.Name{Organization: []string{"Lunar"}, CommonName: "Lunar cluster " + clusterID},
		NotBefore:             now.Add(-backdate),
		NotAfter:              now.Add(caLifetime),
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageCRLSign | x509.KeyUsageDigitalSignature,
		BasicConstraintsValid: true,
		IsCA:                  true,
		MaxPathLenZero:        true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return nil, err
	}
	cert, err := x509.ParseCertificate(der)
	return &authority{cert, key}, err
}

// issue signs a node's certificate, good for both ends of a connection.
func (a *authority) issue(node, address string, public crypto.PublicKey, now time.Time) (*x509.Certificate, error) {
	template := &x509.Certificate{
		SerialNumber: newSerial(),
		Subject:      pkix.Name{Organization: []string{"Lunar"}, CommonName: node},
		NotBefore:    now.Add(-backdate),
		NotAfter:     now.Add(nodeLifetime),
		KeyUsage:     x509.KeyUsageDigitalSignature,
		ExtKeyUsage:  []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		DNSNames:     []string{node},
		IPAddresses:  []net.IP{net.ParseIP(address)},
	}
	if template.NotBefore.Before(a.cert.NotBefore) {
		template.NotBefore = a.cert.NotBefore
	}
	if template.NotAfter.After(a.cert.NotAfter) {
		template.NotAfter = a.cert.NotAfter
	}
	der, err := x509.CreateCertificate(rand.Reader, template, a.cert, public, a.key)
	if err != nil {
		return nil, err
	}
	return x509.ParseCertificate(der)
}

// revocations makes the list that etcd's own listeners read, RFC 5280 §5.
func (a *authority) revocations(serials []string, now time.Time) ([]byte, error) {
	list := &x509.RevocationList{Number: big.NewInt(now.UnixNano()), ThisUpdate: now, NextUpdate: now.Add(caLifetime)}
	for _, s := range serials {
		n, ok := new(big.Int).SetString(s, 16)
		if !ok {
			return nil, fmt.Errorf("serial number %q: %w", s, ErrDamaged)
		}
		list.RevokedCertificateEntries = append(list.RevokedCertificateEntries, x509.RevocationListEntry{SerialNumber: n, RevocationTime: now})
	}
	return x509.CreateRevocationList(rand.Reader, list, a.cert, a.key)
}

func serialOf(cert *x509.Certificate) string { return cert.SerialNumber.Text(16) }

func certPEM(cert *x509.Certificate) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert.Raw})
}

func keyPEM(key *ecdsa.PrivateKey) ([]byte, error) {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, err
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), nil
}

// pemBlock wants exactly one block of a kind.
func pemBlock(data []byte, kind string) ([]byte, error) {
	block, rest := pem.Decode(data)
	if block == nil || block.Type != kind || len(bytes.TrimSpace(rest)) > 0 {
		return nil, fmt.Errorf("%w: not one PEM block %q", ErrDamaged, kind)
	}
	return block.Bytes, nil
}

func parseCert(data []byte) (*x509.Certificate, error) {
	der, err := pemBlock(data, "CERTIFICATE")
	if err != nil {
		return nil, err
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, fmt.Errorf("%w: certificate: %w", ErrDamaged, err)
	}
	return cert, nil
}

func parseKey(data []byte) (*ecdsa.PrivateKey, error) {
	der, err := pemBlock(data, "PRIVATE KEY")
	if err != nil {
		return nil, err
	}
	key, err := x509.ParsePKCS8PrivateKey(der)
	if err != nil {
		return nil, fmt.Errorf("%w: key: %w", ErrDamaged, err)
	}
	ec, ok := key.(*ecdsa.PrivateKey)
	if !ok {
		return nil, fmt.Errorf("%w: not an ECDSA key", ErrDamaged)
	}
	return ec, nil
}

// parseAuthority reads a CA and checks that key and certificate belong together.
func parseAuthority(cert, key []byte) (*authority, error) {
	c, err := parseCert(cert)
	if err != nil {
		return nil, err
	}
	k, err := parseKey(key)
	if err != nil {
		return nil, err
	}
	if !c.IsCA || !k.PublicKey.Equal(c.PublicKey) {
		return nil, fmt.Errorf("%w: the CA's key and certificate do not belong together", ErrDamaged)
	}
	return &authority{c, k}, nil
}

// newRequest is a node's signing request, RFC 2986.
func newRequest(node string, key *ecdsa.PrivateKey) ([]byte, error) {
	template := &x509.CertificateRequest{Subject: pkix.Name{CommonName: node}}
	der, err := x509.CreateCertificateRequest(rand.Reader, template, key)
	if err != nil {
		return nil, err
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der}), nil
}

// parseRequest checks a signing request: its signature proves that the sender has the key.
func parseRequest(data []byte, node string) (*x509.CertificateRequest, error) {
	der, err := pemBlock(data, "CERTIFICATE REQUEST")
	if err != nil {
		return nil, err
	}
	r, err := x509.ParseCertificateRequest(der)
	if err != nil {
		return nil, fmt.Errorf("%w: certificate request: %w", ErrDamaged, err)
	}
	if err := r.CheckSignature(); err != nil {
		return nil, fmt.Errorf("%w: certificate request: %w", ErrDamaged, err)
	}
	key, ok := r.PublicKey.(*ecdsa.PublicKey)
	if !ok || key.Curve != elliptic.P256() || r.Subject.CommonName != node {
		return nil, fmt.Errorf("%w: certificate request: not a P-256 key of node %q", ErrDamaged, node)
	}
	return r, nil
}

// explain turns a failed verification into what a user can act on.
func explain(err error, now time.Time) error {
	var invalid x509.CertificateInvalidError
	var unknown x509.UnknownAuthorityError
	switch {
	case errors.As(err, &invalid) && invalid.Reason == x509.Expired:
		return fmt.Errorf("%w: this node's clock says %s, and the certificate is good from %s to %s; set the clocks right",
			ErrCertificate, now.UTC().Format(time.RFC3339), invalid.Cert.NotBefore.Format(time.RFC3339), invalid.Cert.NotAfter.Format(time.RFC3339))
	case errors.As(err, &unknown):
		return fmt.Errorf("%w: it is not of this cluster", ErrCertificate)
	}
	return fmt.Errorf("%w: %w", ErrCertificate, err)
}

func sum(cert *x509.Certificate) fingerprint { return sha256.Sum256(cert.Raw) }
