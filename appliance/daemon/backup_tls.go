package daemon

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"time"

	"lunar/appliance/api"
)

// certifying makes the certificates of one backup, by a CA whose key is forgotten with it.
type certifying struct {
	until time.Time
	ca    *x509.Certificate
	key   *ecdsa.PrivateKey
}

// certificate makes one with a key of its own; without a CA yet it is the CA's.
func (c *certifying) certificate(t *x509.Certificate) (der []byte, key *ecdsa.PrivateKey, err error) {
	if key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader); err != nil {
		return nil, nil, err
	}
	if t.SerialNumber, err = rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120)); err != nil {
		return nil, nil, err
	}
	t.NotBefore, t.NotAfter = time.Now().Add(-time.Hour), c.until.Add(time.Hour)
	parent, signer := c.ca, c.key
	if parent == nil {
		parent, signer = t, key
	}
	der, err = x509.CreateCertificate(rand.Reader, t, parent, &key.PublicKey, signer)
	return der, key, err
}

// backupTLS makes what a node serves a backup with, and what lets a tool in: nothing else of the cluster trusts it.
func backupTLS(node string, at net.Addr, until time.Time) (*tls.Config, *api.BackupKeys, error) {
	c := &certifying{until: until}
	der, key, err := c.certificate(&x509.Certificate{Subject: pkix.Name{CommonName: "lunar backup on " + node}, IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageCertSign})
	if err != nil {
		return nil, nil, err
	}
	root := der
	if c.ca, err = x509.ParseCertificate(der); err != nil {
		return nil, nil, err
	}
	c.key = key
	server := &x509.Certificate{Subject: pkix.Name{CommonName: node}, DNSNames: []string{node}, KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}}
	if tcp, ok := at.(*net.TCPAddr); ok {
		server.IPAddresses = addressesOf(tcp.IP)
	}
	serverDER, serverKey, err := c.certificate(server)
	if err != nil {
		return nil, nil, err
	}
	clientDER, clientKey, err := c.certificate(&x509.Certificate{Subject: pkix.Name{CommonName: "backup tool"}, KeyUsage: x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}})
	if err != nil {
		return nil, nil, err
	}
	rawKey, err := x509.MarshalPKCS8PrivateKey(clientKey)
	if err != nil {
		return nil, nil, err
	}
	pool := x509.NewCertPool()
	pool.AddCert(c.ca)
	config := &tls.Config{MinVersion: tls.VersionTLS12, ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: pool,
		Certificates: []tls.Certificate{{Certificate: [][]byte{serverDER}, PrivateKey: serverKey}}}
	return config, &api.BackupKeys{CA: pemOf("CERTIFICATE", root), Cert: pemOf("CERTIFICATE", clientDER), Key: pemOf("PRIVATE KEY", rawKey)}, nil
}

func pemOf(kind string, der []byte) string {
	return string(pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}))
}

// addressesOf are those that a listener on ip is reached by.
func addressesOf(ip net.IP) []net.IP {
	if !ip.IsUnspecified() {
		return []net.IP{ip}
	}
	var out []net.IP
	all, _ := net.InterfaceAddrs()
	for _, a := range all {
		if n, ok := a.(*net.IPNet); ok {
			out = append(out, n.IP)
		}
	}
	return out
}
