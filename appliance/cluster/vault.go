package cluster

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
)

// Secret is a CHAP secret in the clear. It hides itself from logs and from %v; it does not marshal.
type Secret string

// String hides the secret.
func (Secret) String() string { return "[secret]" }

// GoString hides the secret.
func (Secret) GoString() string { return "[secret]" }

// LogValue hides the secret.
func (Secret) LogValue() slog.Value { return slog.StringValue("[secret]") }

// MarshalText refuses: a secret leaves the process sealed or not at all.
func (Secret) MarshalText() ([]byte, error) {
	return nil, errors.New("a secret does not marshal; seal it")
}

// keyBytes is AES-256's key length.
const keyBytes = 32

// vault seals secrets with AES-256-GCM under a key that lies beside the database, not in it: a
// saved or external database alone gives no secret away.
// The nodes of a cluster share the key.
type vault struct {
	aead cipher.AEAD
	key  []byte
}

// openVault reads the cluster's key, or the node's own, which is made if it is missing.
func openVault(dir string, s *self) (*vault, error) {
	path := filepath.Join(dir, secretFile)
	if s != nil {
		path = s.path(secretFile)
		if _, err := os.Stat(path); err != nil {
			return nil, fmt.Errorf("%w; restore it from a backup or another node of the cluster", err)
		}
	}
	key, err := loadKey(path)
	if err != nil {
		return nil, err
	}
	return newVault(key)
}

func newVault(key []byte) (*vault, error) {
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, err
	}
	aead, err := cipher.NewGCMWithRandomNonce(block)
	if err != nil {
		return nil, err
	}
	return &vault{aead, key}, nil
}

func loadKey(path string) ([]byte, error) {
	key, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return makeKey(path)
	}
	if err != nil {
		return nil, err
	}
	if len(key) != keyBytes {
		return nil, fmt.Errorf("%s: %w: %d bytes, not %d; restore it from a backup, or remove it and set every CHAP secret anew",
			path, ErrDamaged, len(key), keyBytes)
	}
	return key, nil
}

// makeKey writes a new key under a temporary name first, so that a crash leaves no short key.
func makeKey(path string) ([]byte, error) {
	key := make([]byte, keyBytes)
	if _, err := rand.Read(key); err != nil {
		return nil, err
	}
	if err := writeSynced(path+".new", key); err != nil {
		return nil, err
	}
	if err := os.Rename(path+".new", path); err != nil {
		return nil, err
	}
	return key, syncDir(filepath.Dir(path))
}

func writeSynced(path string, data []byte) error {
	file, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = file.Write(data)
	return errors.Join(err, file.Sync(), file.Close())
}

func syncDir(path string) error {
	dir, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}

func (v *vault) seal(plain []byte, use string) []byte {
	return v.aead.Seal(nil, nil, plain, []byte(use))
}

func (v *vault) open(sealed []byte, use string) ([]byte, error) {
	return v.aead.Open(nil, nil, sealed, []byte(use))
}

// Seal encrypts a secret for one use, such as a target's name and a user's; Unseal needs the same use.
func (db *DB) Seal(s Secret, use string) []byte {
	return db.vault.Load().seal([]byte(s), use)
}

// Unseal decrypts what Seal made. ErrSecretKey: another key, another use, or damage.
func (db *DB) Unseal(sealed []byte, use string) (Secret, error) {
	plain, err := db.vault.Load().open(sealed, use)
	if err != nil {
		return "", fmt.Errorf("cluster: unseal: %w; set the secret anew with `lunarctl target chap`", ErrSecretKey)
	}
	return Secret(plain), nil
}
