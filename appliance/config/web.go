package config

import (
	"net"
	"net/netip"
)

// Loopback tells whether the console is for this machine alone, and served without TLS.
func (w *Web) Loopback() bool {
	host, _, err := net.SplitHostPort(w.Address)
	if err != nil {
		return false
	}
	ip, err := netip.ParseAddr(host)
	return host == "localhost" || err == nil && ip.IsLoopback()
}

// TLS tells whether the console is served by TLS.
func (w *Web) TLS() bool { return !w.Loopback() || w.CertFile != "" }

func webAddress(c *Config) (string, string) {
	if c.Web.Address == "" {
		return "", ""
	}
	problem, _ := hostPort(c.Web.Address)
	if problem == "" {
		return "", ""
	}
	return problem, `write it as ADDRESS:PORT, such as "127.0.0.1:9443" or "[::]:9443"; "" turns the console off`
}

func webKeyFile(c *Config) (string, string) {
	if (c.Web.CertFile == "") != (c.Web.KeyFile == "") {
		return "cert_file and key_file belong together", "give both or none"
	}
	return optionalPath(c.Web.KeyFile)
}
