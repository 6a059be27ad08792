package cluster

// Credentials are this node's place in its cluster in PEM, for another process of it, and the serial numbers of the
// certificates that are out of use, hexadecimal. The receiver keeps Key in memory alone.
type Credentials struct {
	Certificate, Key, CA []byte
	Revoked              []string
}

// Credentials are those of now: certificates are renewed, and others revoked. ErrAlone: there is no cluster.
func (db *DB) Credentials() (Credentials, error) {
	s := db.self.Load()
	if s == nil {
		return Credentials{}, ErrAlone
	}
	key, err := keyPEM(s.key)
	if err != nil {
		return Credentials{}, err
	}
	return Credentials{Certificate: certPEM(s.certificate().Leaf), Key: key, CA: certPEM(s.ca), Revoked: db.revoked.list()}, nil
}
