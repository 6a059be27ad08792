package firstboot

import (
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"regexp"
	"slices"
	"strings"
)

// The settings' names: of credentials and on the kernel command line with "lunar." before.
const (
	NodeName    = "node-name"
	Network     = "network"
	JoinAddress = "join-address"
	JoinToken   = "join-token"
	SSHKey      = "ssh-key"
	NTP         = "ntp"
	Console     = "console"
)

// The values of Console: what the machine's own consoles offer to whoever sits there.
const (
	ConsoleMenu   = "menu"   // the menu; the default
	ConsoleStatus = "status" // what the machine is, and nothing to change
)

// Settings are values by their names. One that is not there has its default.
type Settings map[string]string

// maxValue bounds a value.
const maxValue = 16 << 10

// checks has what is right for each setting.
func checks() map[string]func(string) error {
	return map[string]func(string) error{
		NodeName: checkName, Network: checkNetwork, JoinAddress: checkJoin, JoinToken: checkToken, SSHKey: checkKeys, NTP: checkHosts,
		Console: checkConsole,
	}
}

// Names are the settings there are, in order.
func Names() []string {
	return []string{NodeName, Network, JoinAddress, JoinToken, SSHKey, NTP, Console}
}

// Check says what is wrong with a value.
func Check(name, value string) error {
	check, known := checks()[name]
	switch {
	case !known:
		return fmt.Errorf("there is no such setting: there are %s", strings.Join(Names(), ", "))
	case len(value) > maxValue:
		return fmt.Errorf("it has more than %d bytes", maxValue)
	case value == "":
		return nil
	case strings.ContainsFunc(value, func(r rune) bool { return r < ' ' && r != '\n' && r != '\t' }):
		return errors.New("it has control characters")
	}
	return check(value)
}

var nameForm = regexp.MustCompile(`^[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?$`)

func checkName(s string) error {
	if !nameForm.MatchString(s) {
		return fmt.Errorf("%q is no host name: letters, digits and hyphens, 63 at most", s)
	}
	return nil
}

var hostForm = regexp.MustCompile(`^[A-Za-z0-9]([A-Za-z0-9.-]{0,251}[A-Za-z0-9])?$`)

func checkHost(s string) error {
	if net.ParseIP(s) == nil && !hostForm.MatchString(s) {
		return fmt.Errorf("%q is neither an address nor a host name", s)
	}
	return nil
}

func checkJoin(s string) error {
	host := s
	if h, _, err := net.SplitHostPort(s); err == nil {
		host = h
	}
	if inner, ok := strings.CutPrefix(host, "["); ok && strings.HasSuffix(inner, "]") {
		host = strings.TrimSuffix(inner, "]")
	}
	return checkHost(host)
}

func checkToken(s string) error {
	if strings.ContainsAny(s, " \n\t") {
		return errors.New("it has spaces: it is one word, as `lunarctl cluster token` prints it")
	}
	return nil
}

func checkConsole(s string) error {
	if s != ConsoleMenu && s != ConsoleStatus {
		return fmt.Errorf("%q is neither %s nor %s", s, ConsoleMenu, ConsoleStatus)
	}
	return nil
}

func checkHosts(s string) error {
	for _, host := range fields(s) {
		if err := checkHost(host); err != nil {
			return err
		}
	}
	return nil
}

// checkKeys reads lines of authorized_keys without options.
func checkKeys(s string) error {
	for line := range strings.Lines(s) {
		words := strings.Fields(line)
		if len(words) == 0 || strings.HasPrefix(words[0], "#") {
			continue
		}
		known := slices.ContainsFunc([]string{"ssh-", "ecdsa-", "sk-"}, func(p string) bool { return strings.HasPrefix(words[0], p) })
		if !known || len(words) < 2 {
			return fmt.Errorf("%.40q is no public key: it begins as in id_ed25519.pub, with ssh-ed25519 and a long word", line)
		}
		if key, err := base64.StdEncoding.DecodeString(words[1]); err != nil || !wholeKey(key, words[0]) {
			return fmt.Errorf("the key that begins with %.40q is cut or damaged", line)
		}
	}
	return nil
}

// wholeKey tells whether a key's strings, each after its length (RFC 4253 §6.6), fill it; the first one is its type.
func wholeKey(key []byte, kind string) bool {
	for first := true; len(key) > 0; first = false {
		if len(key) < 4 {
			return false
		}
		n := binary.BigEndian.Uint32(key)
		key = key[4:]
		if uint64(n) > uint64(len(key)) || first && string(key[:n]) != kind {
			return false
		}
		key = key[n:]
	}
	return true
}

func fields(s string) []string {
	return strings.FieldsFunc(s, func(r rune) bool { return strings.ContainsRune(" ,\n\t", r) })
}
