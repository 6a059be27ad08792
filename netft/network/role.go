package network

import (
	"fmt"
	"strings"
)

// Role says what a network is for.
type Role uint8

// The roles, as Windows' cluster networks have them.
const (
	// RoleAuto is a Setting without a role: cluster-and-client for a network with a default
	// gateway, cluster for one without. A Network never has it.
	RoleAuto Role = iota
	// RoleNone keeps the cluster off the network.
	RoleNone
	// RoleCluster lets only nodes talk over it.
	RoleCluster
	// RoleClusterAndClient lets nodes and clients.
	RoleClusterAndClient
)

var roleNames = [...]string{"auto", "none", "cluster", "cluster-and-client"}

// String is the role's name in commands and files.
func (r Role) String() string {
	if int(r) < len(roleNames) {
		return roleNames[r]
	}
	return fmt.Sprintf("role %d", uint8(r))
}

// Enabled tells whether the cluster may use the network.
func (r Role) Enabled() bool { return r == RoleCluster || r == RoleClusterAndClient }

// MarshalText implements encoding.TextMarshaler.
func (r Role) MarshalText() ([]byte, error) {
	if int(r) >= len(roleNames) {
		return nil, fmt.Errorf("network: unknown role %d", uint8(r))
	}
	return []byte(r.String()), nil
}

// UnmarshalText implements encoding.TextUnmarshaler; empty text is RoleAuto.
func (r *Role) UnmarshalText(text []byte) error {
	parsed, err := ParseRole(string(text))
	if err == nil {
		*r = parsed
	}
	return err
}

// ParseRole reads a role's name; the empty name is RoleAuto.
func ParseRole(name string) (Role, error) {
	if name == "" {
		return RoleAuto, nil
	}
	for i, n := range roleNames {
		if n == name {
			return Role(i), nil
		}
	}
	return RoleAuto, fmt.Errorf("network: unknown role %q: give one of %s", name, strings.Join(roleNames[1:], ", "))
}
