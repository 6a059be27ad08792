package cluster

import (
	"crypto/tls"
	"fmt"
	"time"

	"go.etcd.io/etcd/client/pkg/v3/transport"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
)

// The bounds of a connection to an etcd over the network. gRPC asks an idle peer every 10 s at most.
const (
	dialTimeout   = 5 * time.Second
	keepAliveTime = 10 * time.Second
	keepAliveWait = 2 * time.Second
)

func remoteConfig(endpoints []string, security *tls.Config, log *zap.Logger) clientv3.Config {
	return clientv3.Config{
		Endpoints:            endpoints,
		TLS:                  security,
		DialTimeout:          dialTimeout,
		DialKeepAliveTime:    keepAliveTime,
		DialKeepAliveTimeout: keepAliveWait,
		Logger:               log,
	}
}

// dialExternal connects to the etcd of cluster.endpoints.
func dialExternal(o *Options, log *zap.Logger) (*clientv3.Client, error) {
	c := &o.Config
	var security *tls.Config
	info := transport.TLSInfo{TrustedCAFile: c.CAFile, CertFile: c.CertFile, KeyFile: c.KeyFile}
	if !info.Empty() || info.TrustedCAFile != "" {
		var err error
		if security, err = info.ClientConfig(); err != nil {
			return nil, fmt.Errorf("cluster.ca_file, cert_file or key_file: %w", err)
		}
	}
	cfg := remoteConfig(c.Endpoints, security, log)
	cfg.RejectOldCluster = true
	client, err := clientv3.New(cfg)
	if err != nil {
		return nil, fmt.Errorf("%w: %w; check cluster.endpoints", ErrUnavailable, err)
	}
	return client, nil
}

// dialVoters connects to the voters' client ports, without waiting for them.
func (db *DB) dialVoters(s *self, log *zap.Logger) (*clientv3.Client, error) {
	client, err := clientv3.New(remoteConfig(s.identity().Peers, db.clientTLS(s, ""), log))
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	return client, nil
}
