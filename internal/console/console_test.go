package console_test

import (
	"io"
	"net/http"
	"net/http/httptest"
	"regexp"
	"strings"
	"testing"

	"github.com/arsmedicatech/webhooks/internal/console"
)

func serve(t *testing.T) *httptest.Server {
	t.Helper()
	h, err := console.Handler(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusTeapot) }))
	if err != nil {
		t.Fatal(err)
	}
	s := httptest.NewServer(h)
	t.Cleanup(s.Close)
	return s
}

// answer is what a request is answered with.
type answer struct {
	status int
	header http.Header
	body   string
}

func ask(t *testing.T, method, url string, headers ...string) answer {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i < len(headers); i += 2 {
		req.Header.Set(headers[i], headers[i+1])
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return answer{resp.StatusCode, resp.Header, string(body)}
}

// The page and its files are served under a policy that lets nothing else run,
// and the page has nothing that the policy would stop.
func TestPage(t *testing.T) {
	s := serve(t)
	page := ask(t, http.MethodGet, s.URL+"/").body
	linked := regexp.MustCompile(`(?:src|href)="(/[^"]*)"`).FindAllStringSubmatch(page, -1)
	if len(linked) != 3 {
		t.Fatalf("the page links to %v, want its style, icon and script", linked)
	}
	kinds := map[string]string{"/": "text/html; charset=utf-8", linked[0][1]: "text/css; charset=utf-8", linked[1][1]: "image/svg+xml", linked[2][1]: "text/javascript; charset=utf-8"}
	for path, kind := range kinds {
		file := ask(t, http.MethodGet, s.URL+path)
		h, body := file.header, file.body
		if file.status != http.StatusOK || body == "" || h.Get("Content-Type") != kind || h.Get("X-Content-Type-Options") != "nosniff" {
			t.Errorf("%s is answered %d, %v", path, file.status, h)
		}
		policy := h.Get("Content-Security-Policy")
		if !strings.HasPrefix(policy, "default-src 'none';") || strings.Contains(policy, "unsafe") || strings.Contains(policy, "*") ||
			!strings.Contains(policy, "frame-ancestors 'none'") {
			t.Errorf("the policy of %s is %q", path, policy)
		}
		if again := ask(t, http.MethodGet, s.URL+path, "If-None-Match", h.Get("ETag")); again.status != http.StatusNotModified {
			t.Errorf("%s unchanged is answered %d", path, again.status)
		}
		if head := ask(t, http.MethodHead, s.URL+path); head.status != http.StatusOK || head.body != "" {
			t.Errorf("HEAD of %s is answered %d", path, head.status)
		}
		for _, wrong := range []string{"style=", "<style", "onclick=", "innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval("} {
			if strings.Contains(body, wrong) {
				t.Errorf("%s has %q", path, wrong)
			}
		}
	}
	for _, script := range regexp.MustCompile(`(?s)<script[^>]*>(.*?)</script>`).FindAllStringSubmatch(page, -1) {
		if script[1] != "" {
			t.Errorf("the page has a script in it: %s", script[1])
		}
	}
}

// All else is for the API.
func TestNext(t *testing.T) {
	s := serve(t)
	for _, request := range [][2]string{{"GET", "/api/auth/me"}, {"POST", "/"}, {"GET", "/console.html"}, {"GET", "/x"}, {"DELETE", "/console.js"}} {
		if a := ask(t, request[0], s.URL+request[1]); a.status != http.StatusTeapot {
			t.Errorf("%s %s is answered %d", request[0], request[1], a.status)
		}
	}
}
