package netft

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"lunar/netft/network"
)

// stateVersion is the only version of the StateFile.
const stateVersion = 1

// ErrState says that the StateFile is not what was written.
var ErrState = errors.New("netft: the state file is damaged")

// state is what the StateFile keeps.
type state struct {
	Peers    []Peer            `json:"peers"`
	Settings []network.Setting `json:"settings"`
}

// envelope is the file: the state and its SHA-256.
type envelope struct {
	Version int             `json:"version"`
	Sum     string          `json:"sum"`
	State   json.RawMessage `json:"state"`
}

// readState returns nothing without a file.
func readState(path string) (state, error) {
	if path == "" {
		return state{}, nil
	}
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return state{}, nil
	}
	if err != nil {
		return state{}, fmt.Errorf("netft: %w", err)
	}
	return decodeState(b)
}

func decodeState(b []byte) (state, error) {
	var e envelope
	if err := json.Unmarshal(b, &e); err != nil {
		return state{}, fmt.Errorf("%w: %w", ErrState, err)
	}
	sum := sha256.Sum256(e.State)
	if e.Version != stateVersion || e.Sum != hex.EncodeToString(sum[:]) {
		return state{}, fmt.Errorf("%w: version %d, or a sum that does not fit", ErrState, e.Version)
	}
	var s state
	if err := json.Unmarshal(e.State, &s); err != nil {
		return state{}, fmt.Errorf("%w: %w", ErrState, err)
	}
	return s, nil
}

func encodeState(s state) ([]byte, error) {
	b, err := json.Marshal(s)
	if err != nil {
		return nil, fmt.Errorf("netft: %w", err)
	}
	sum := sha256.Sum256(b)
	return json.Marshal(envelope{Version: stateVersion, Sum: hex.EncodeToString(sum[:]), State: b})
}

// writeState replaces the file: after a crash it is the old one or the new one.
func writeState(path string, s state) error {
	if path == "" {
		return nil
	}
	b, err := encodeState(s)
	if err != nil {
		return err
	}
	file, err := os.CreateTemp(filepath.Dir(path), filepath.Base(path)+".*")
	if err != nil {
		return fmt.Errorf("netft: store the peers: %w", err)
	}
	_, err = file.Write(b)
	if err = errors.Join(err, file.Sync(), file.Close()); err == nil {
		err = os.Rename(file.Name(), path)
	}
	if err != nil {
		return errors.Join(fmt.Errorf("netft: store the peers: %w", err), os.Remove(file.Name()))
	}
	return syncFolder(filepath.Dir(path))
}

func syncFolder(path string) error {
	d, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("netft: %w", err)
	}
	return errors.Join(d.Sync(), d.Close())
}
