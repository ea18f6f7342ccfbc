// Package console is the web console: one page that shows subscriptions and what
// became of their deliveries. It has no rights and no data of its own: the
// browser asks the API, as any other client does.
package console

import (
	"bytes"
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"fmt"
	"html/template"
	"net/http"
	"strings"
	"time"
)

//go:embed static
var static embed.FS

// policy lets the page load its own style and script and ask the API, and nothing
// else: what endpoints answer is shown there, and they are not to be trusted.
const policy = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self'; " +
	"base-uri 'none'; form-action 'none'; frame-ancestors 'none'"

// Where the page and its files are.
const (
	pagePath   = "/"
	stylePath  = "/console.css"
	scriptPath = "/console.js"
	iconPath   = "/console.svg"
)

type file struct {
	content []byte
	kind    string
	tag     string
}

// Handler serves the console at / and leaves all other paths, and methods but GET
// and HEAD, to next.
func Handler(next http.Handler) (http.Handler, error) {
	files := map[string]file{}
	for path, kind := range map[string]string{
		stylePath: "text/css; charset=utf-8", scriptPath: "text/javascript; charset=utf-8", iconPath: "image/svg+xml",
	} {
		content, err := static.ReadFile("static" + path)
		if err != nil {
			return nil, fmt.Errorf("read the console's files: %w", err)
		}
		files[path] = newFile(content, kind)
	}
	page, err := template.ParseFS(static, "static/console.html")
	if err != nil {
		return nil, fmt.Errorf("read the console's page: %w", err)
	}
	// Each version of a file has an address of its own, so that a browser never
	// runs a new page with an old script.
	var content bytes.Buffer
	if err := page.Execute(&content, map[string]string{
		"Style": stylePath + "?" + files[stylePath].tag, "Script": scriptPath + "?" + files[scriptPath].tag, "Icon": iconPath,
	}); err != nil {
		return nil, fmt.Errorf("make the console's page: %w", err)
	}
	files[pagePath] = newFile(content.Bytes(), "text/html; charset=utf-8")

	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		f, ok := files[r.URL.Path]
		if !ok || r.Method != http.MethodGet && r.Method != http.MethodHead {
			next.ServeHTTP(w, r)
			return
		}
		h := w.Header()
		h.Set("Content-Type", f.kind)
		h.Set("Content-Security-Policy", policy)
		h.Set("X-Content-Type-Options", "nosniff")
		h.Set("Referrer-Policy", "no-referrer")
		h.Set("Cache-Control", "no-cache")
		h.Set("ETag", `"`+f.tag+`"`)
		http.ServeContent(w, r, strings.TrimPrefix(r.URL.Path, "/"), time.Time{}, bytes.NewReader(f.content))
	}), nil
}

func newFile(content []byte, kind string) file {
	sum := sha256.Sum256(content)
	return file{content: content, kind: kind, tag: hex.EncodeToString(sum[:8])}
}
