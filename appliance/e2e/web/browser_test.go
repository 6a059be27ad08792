package web

import (
	"bufio"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// browser is a headless Chromium, spoken to by its DevTools protocol over a pipe: JSON messages, each with a zero byte after it.
type browser struct {
	t   *testing.T
	cmd *exec.Cmd
	out *os.File

	mu      sync.Mutex // guards what follows
	id      int
	waiting map[int]chan reply
	tabs    map[string]*tab
	ended   error
}

type reply struct {
	Result json.RawMessage
	Error  *struct{ Message string }
}

// callLimit bounds one answer of the browser, seeLimit the wait for what a page shows.
const (
	callLimit = 30 * time.Second
	seeLimit  = time.Minute
)

func startBrowser(t *testing.T) *browser {
	t.Helper()
	dir, err := os.MkdirTemp("", "chromium")
	check(t, err)
	toIn, to, err := os.Pipe()
	check(t, err)
	from, fromOut, err := os.Pipe()
	check(t, err)
	b := &browser{t: t, out: to, waiting: map[int]chan reply{}, tabs: map[string]*tab{}}
	b.cmd = exec.Command("chromium", "--headless=new", "--remote-debugging-pipe", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
		"--ignore-certificate-errors", "--hide-scrollbars", "--force-color-profile=srgb", "--lang=en-GB", "--user-data-dir="+dir, "about:blank")
	b.cmd.Env = append(os.Environ(), "HOME="+dir, "TMPDIR="+dir, "TZ=UTC")
	b.cmd.ExtraFiles = []*os.File{toIn, fromOut}
	b.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	check(t, b.cmd.Start())
	check(t, errors.Join(toIn.Close(), fromOut.Close()))
	var reading sync.WaitGroup
	reading.Go(func() { b.read(from) })
	t.Cleanup(func() {
		_ = syscall.Kill(-b.cmd.Process.Pid, syscall.SIGKILL)
		_ = b.cmd.Wait()
		_ = to.Close()
		reading.Wait()
		_ = from.Close()
		_ = os.RemoveAll(dir)
	})
	return b
}

// read hands messages out until the browser ends.
func (b *browser) read(from *os.File) {
	r := bufio.NewReader(from)
	for {
		text, err := r.ReadBytes(0)
		if err != nil {
			b.end(err)
			return
		}
		var m struct {
			ID        int
			Method    string
			SessionID string
			Params    json.RawMessage
			reply
		}
		if err := json.Unmarshal(text[:len(text)-1], &m); err != nil {
			b.end(err)
			return
		}
		b.mu.Lock()
		answer, tab := b.waiting[m.ID], b.tabs[m.SessionID]
		delete(b.waiting, m.ID)
		b.mu.Unlock()
		switch {
		case answer != nil:
			answer <- m.reply
		case tab != nil:
			tab.happened(m.Method, m.Params)
		}
	}
}

func (b *browser) end(err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.ended = err
	for id, w := range b.waiting {
		w <- reply{Error: &struct{ Message string }{err.Error()}}
		delete(b.waiting, id)
	}
}

// call sends a command and decodes its result into out, unless that is nil.
func (b *browser) call(session, method string, params, out any) error {
	answer := make(chan reply, 1)
	b.mu.Lock()
	b.id++
	m := map[string]any{"id": b.id, "method": method, "params": params}
	if session != "" {
		m["sessionId"] = session
	}
	text, err := json.Marshal(m)
	if err == nil && b.ended == nil {
		b.waiting[b.id] = answer
		_, err = b.out.Write(append(text, 0))
	}
	err = errors.Join(err, b.ended)
	b.mu.Unlock()
	if err != nil {
		return fmt.Errorf("%s: %w", method, err)
	}
	select {
	case r := <-answer:
		if r.Error != nil {
			return fmt.Errorf("%s: %s", method, r.Error.Message)
		}
		if out == nil {
			return nil
		}
		return json.Unmarshal(r.Result, out)
	case <-time.After(callLimit):
		return fmt.Errorf("%s: no answer within %v", method, callLimit)
	}
}

// tab is a page.
type tab struct {
	*browser
	session string
	width   int

	mu       sync.Mutex // guards what follows
	problems []string   // exceptions and errors that the page's console had
	images   []byte     // given in the place of the list of images, unless nil
}

func (b *browser) open(url string) *tab {
	b.t.Helper()
	var target struct{ TargetID string }
	check(b.t, b.call("", "Target.createTarget", map[string]any{"url": "about:blank"}, &target))
	var attached struct{ SessionID string }
	check(b.t, b.call("", "Target.attachToTarget", map[string]any{"targetId": target.TargetID, "flatten": true}, &attached))
	p := &tab{browser: b, session: attached.SessionID}
	b.mu.Lock()
	b.tabs[p.session] = p
	b.mu.Unlock()
	for _, domain := range []string{"Page", "Runtime", "Log", "Network"} {
		p.do(domain+".enable", map[string]any{})
	}
	p.screen(desktop, "light")
	p.do("Page.navigate", map[string]any{"url": url})
	return p
}

// happened notes what is no answer.
func (p *tab) happened(method string, params json.RawMessage) {
	var e struct {
		ExceptionDetails struct {
			Text      string
			Exception struct{ Description string }
		}
		Entry     struct{ Level, Text, Source, URL string }
		RequestID string
	}
	_ = json.Unmarshal(params, &e)
	switch method {
	case "Runtime.exceptionThrown":
		p.note(e.ExceptionDetails.Text + " " + e.ExceptionDetails.Exception.Description)
	case "Log.entryAdded":
		if e.Entry.Level == "error" && e.Entry.Source != "network" { // a node that is away is no mistake of the page
			p.note(e.Entry.Source + ": " + e.Entry.Text + " " + e.Entry.URL)
		}
	case "Fetch.requestPaused":
		go p.answer(e.RequestID)
	}
}

func (p *tab) note(text string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.problems = append(p.problems, text)
}

func (p *tab) answer(request string) {
	p.mu.Lock()
	body := base64.StdEncoding.EncodeToString(p.images)
	p.mu.Unlock()
	_ = p.call(p.session, "Fetch.fulfillRequest", map[string]any{"requestId": request, "responseCode": 200, "body": body,
		"responseHeaders": []map[string]string{{"name": "Content-Type", "value": "application/json"}}}, nil)
}

func (p *tab) do(method string, params any) {
	p.t.Helper()
	check(p.t, p.call(p.session, method, params, nil))
}

// eval runs an expression in the page.
func (p *tab) eval(expression string, out any) error {
	var r struct {
		Result           struct{ Value json.RawMessage }
		ExceptionDetails *struct {
			Exception struct{ Description string }
		}
	}
	err := p.call(p.session, "Runtime.evaluate", map[string]any{"expression": expression, "returnByValue": true, "awaitPromise": true}, &r)
	switch {
	case err != nil:
		return err
	case r.ExceptionDetails != nil:
		return errors.New(r.ExceptionDetails.Exception.Description)
	case out == nil:
		return nil
	}
	return json.Unmarshal(r.Result.Value, out)
}

// see waits until an expression, or what it promises, is true.
func (p *tab) see(what, expression string) {
	p.t.Helper()
	end := time.Now().Add(seeLimit)
	for {
		var ok bool
		err := p.eval("Promise.resolve("+expression+").then(Boolean)", &ok)
		if ok {
			return
		}
		if time.Now().After(end) {
			var text string
			_ = p.eval("document.body.innerText", &text)
			p.t.Fatalf("the page does not show %s within %v: %v\n%s\n%s", what, seeLimit, err, text, strings.Join(p.problems, "\n"))
		}
		time.Sleep(50 * time.Millisecond)
	}
}

// has is an expression: the page shows a text.
func has(text string) string { return fmt.Sprintf("document.body.innerText.includes(%q)", text) }

// button is an expression: what can be pressed and has that text.
func button(text string) string {
	return fmt.Sprintf("[...(document.querySelector('dialog:last-of-type') || document).querySelectorAll('button, a')].find((b) => b.innerText.trim() === %q && !b.disabled)", text)
}

// click presses the mouse on an element.
func (p *tab) click(element string) {
	p.t.Helper()
	p.see(element, element)
	p.see(element+", at rest", "new Promise((done) => { const e = "+element+"; e.scrollIntoView({block: 'center'}); const top = e.getBoundingClientRect().top; "+
		"setTimeout(() => done(e.isConnected && e.getBoundingClientRect().top === top), 50); })")
	var at struct{ X, Y float64 }
	check(p.t, p.eval("(() => { const r = "+element+".getBoundingClientRect(); return {X: r.x + r.width / 2, Y: r.y + r.height / 2}; })()", &at))
	for _, kind := range []string{"mousePressed", "mouseReleased"} {
		p.do("Input.dispatchMouseEvent", map[string]any{"type": kind, "x": at.X, "y": at.Y, "button": "left", "clickCount": 1})
	}
}

// enter types into the field of that name.
func (p *tab) enter(name, text string) {
	p.t.Helper()
	p.see("a field "+name, fmt.Sprintf("document.querySelector('[name=%q]')", name))
	check(p.t, p.eval(fmt.Sprintf("(() => { const e = document.querySelector('[name=%q]'); e.focus(); e.select?.(); })()", name), nil))
	p.do("Input.insertText", map[string]any{"text": text})
}

var keyCodes = map[string]int{"Enter": 13, "Escape": 27, "Tab": 9, "ArrowDown": 40, "End": 35}

// press presses keys one after the other.
func (p *tab) press(keys ...string) {
	p.t.Helper()
	for _, k := range keys {
		m := map[string]any{"key": k, "windowsVirtualKeyCode": keyCodes[k]}
		if len(k) == 1 {
			m["text"] = k
		}
		if k == "Enter" {
			m["text"] = "\r"
		}
		for _, kind := range []string{"keyDown", "keyUp"} {
			m["type"] = kind
			p.do("Input.dispatchKeyEvent", m)
		}
	}
}

// front makes a tab the one that is seen: others wait.
func (p *tab) front() {
	p.t.Helper()
	p.do("Page.bringToFront", map[string]any{})
}

type size struct {
	name          string
	width, height int
	phone         bool
}

var (
	desktop = size{"desktop", 1280, 860, false}
	phone   = size{"phone", 375, 812, true}
)

func (p *tab) screen(s size, scheme string) {
	p.t.Helper()
	p.width = s.width
	p.do("Emulation.setDeviceMetricsOverride", map[string]any{"width": s.width, "height": s.height, "deviceScaleFactor": 1, "mobile": s.phone})
	p.do("Emulation.setTouchEmulationEnabled", map[string]any{"enabled": s.phone})
	p.do("Emulation.setEmulatedMedia", map[string]any{"features": []map[string]string{
		{"name": "prefers-color-scheme", "value": scheme}, {"name": "prefers-reduced-motion", "value": "reduce"},
	}})
}

// shoot takes a picture into the folder LUNAR_SHOTS, unless that is empty.
func (p *tab) shoot(name string) {
	p.t.Helper()
	check(p.t, p.eval("document.querySelector('dialog') || document.activeElement.blur()", nil))
	var shot struct{ Data []byte }
	check(p.t, p.call(p.session, "Page.captureScreenshot", map[string]any{"format": "png", "optimizeForSpeed": false}, &shot))
	if dir := os.Getenv("LUNAR_SHOTS"); dir != "" {
		check(p.t, os.MkdirAll(dir, 0o755))
		small, err := shrink(shot.Data)
		check(p.t, err)
		check(p.t, os.WriteFile(filepath.Join(dir, name+".png"), small, 0o644))
	}
}

// sound fails the test if the page had errors, or is wider than its window.
func (p *tab) sound() {
	p.t.Helper()
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, e := range p.problems {
		p.t.Errorf("the page: %s", e)
	}
	p.problems = nil
}

func (p *tab) fits(what string) {
	p.t.Helper()
	var over int
	check(p.t, p.eval("document.documentElement.scrollWidth", &over))
	if over -= p.width; over > 0 {
		p.t.Errorf("%s is %d pixels wider than its window", what, over)
	}
}
