package api

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
)

// DefaultSocket is where a node listens.
const DefaultSocket = "/run/lunar/lunard.sock"

// MaxBody bounds a request's body and one line of a stream.
const MaxBody = 1 << 20

// Client calls one node. It may be used from any goroutine.
type Client struct {
	socket string
	http   http.Client
}

// NewClient makes a client for the node that listens on the unix socket at path. It connects with
// the first call.
func NewClient(path string) *Client {
	dial := func(ctx context.Context, _, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "unix", path)
	}
	return &Client{socket: path, http: http.Client{Transport: &http.Transport{DialContext: dial}}}
}

// Close drops idle connections.
func (c *Client) Close() { c.http.CloseIdleConnections() }

// do sends in as JSON, unless it is nil, and decodes the answer into out, unless that is nil.
func (c *Client) do(ctx context.Context, method, path string, in, out any) error {
	return c.exchange(ctx, method, path, in, func(body io.Reader) error {
		if out == nil {
			return nil
		}
		if err := json.NewDecoder(body).Decode(out); err != nil {
			return Errorf(Failed, "the node's answer cannot be read: %v", err).WithHint("check that lunarctl and lunard are of one version")
		}
		return nil
	})
}

// call is do with a typed answer.
func call[Out any](ctx context.Context, c *Client, method, path string, in any) (Out, error) {
	var out Out
	err := c.do(ctx, method, path, in, &out)
	return out, err
}

// exchange makes one request and has use read the body of an answer that is no refusal.
func (c *Client) exchange(ctx context.Context, method, path string, in any, use func(io.Reader) error) error {
	return c.receive(ctx, method, path, in, func(resp *http.Response) error { return use(resp.Body) })
}

// receive is exchange for who wants the headers too.
func (c *Client) receive(ctx context.Context, method, path string, in any, use func(*http.Response) error) error {
	var body io.Reader
	if in != nil {
		data, err := json.Marshal(in)
		if err != nil {
			return fmt.Errorf("api: encode request: %w", err)
		}
		body = bytes.NewReader(data)
	}
	req, err := http.NewRequestWithContext(ctx, method, "http://lunard"+path, body)
	if err != nil {
		return fmt.Errorf("api: %w", err)
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return c.unreachable(ctx, err)
	}
	defer func() { _ = resp.Body.Close() }()
	if resp.StatusCode >= 300 {
		return refusal(resp)
	}
	return use(resp)
}

func (c *Client) unreachable(ctx context.Context, err error) error {
	if errors.Is(ctx.Err(), context.Canceled) {
		return ctx.Err()
	}
	if u := new(url.Error); errors.As(err, &u) {
		err = u.Err
	}
	return Errorf(Unreachable, "the node at %s cannot be reached: %v", c.socket, err).
		WithHint("is lunard running (systemctl status lunard)? --socket or LUNAR_SOCKET name another socket; root's rights are needed")
}

func refusal(resp *http.Response) error {
	e := &Error{}
	data, err := io.ReadAll(io.LimitReader(resp.Body, MaxBody))
	if err != nil || json.Unmarshal(data, e) != nil || e.Message == "" {
		return Errorf(Failed, "the node answered %s: %s", resp.Status, strings.TrimSpace(string(data)))
	}
	return e
}

// stream calls fn with each JSON line of the answer.
func (c *Client) stream(ctx context.Context, path string, fn func([]byte) error) error {
	return c.exchange(ctx, http.MethodGet, path, nil, func(body io.Reader) error {
		lines := bufio.NewScanner(body)
		lines.Buffer(nil, MaxBody)
		for lines.Scan() {
			if err := fn(lines.Bytes()); err != nil {
				return err
			}
		}
		if err := lines.Err(); err != nil {
			return c.unreachable(ctx, err)
		}
		return nil
	})
}
