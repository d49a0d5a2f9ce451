package cloudflare

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"math"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/sirocco-run/sirocco/pkg/cloudflare/plan"
)

// maxAnswer is more than any answer that is asked for here.
const maxAnswer = 4 << 20

// answer is what the HTTP response said beside its result. The library's own
// errors keep it only where the body is JSON, which that of a proxy on the way is
// not.
type answer struct {
	status int
	header http.Header
	// said is Cloudflare's own words about an error.
	said string
}

// envelope is the part about errors of every answer (Cloudflare API: ResponseInfo).
type envelope struct {
	Errors []struct {
		Code    int    `json:"code"`
		Message string `json:"message"`
	} `json:"errors"`
}

// listen is a middleware of the library that keeps what an answer says.
func (a *answer) listen(req *http.Request, next func(*http.Request) (*http.Response, error)) (*http.Response, error) {
	res, err := next(req)
	if err != nil {
		return res, err
	}
	a.status, a.header = res.StatusCode, res.Header
	body := res.Body
	res.Body = struct {
		io.Reader
		io.Closer
	}{io.LimitReader(body, maxAnswer), body}
	if a.status < http.StatusBadRequest {
		return res, nil
	}
	raw, err := io.ReadAll(io.LimitReader(body, 64<<10))
	if err != nil {
		return res, err
	}
	_ = body.Close()
	res.Body = io.NopCloser(bytes.NewReader(raw))
	var e envelope
	if json.Unmarshal(raw, &e) == nil {
		var said []string
		for _, one := range e.Errors {
			said = append(said, fmt.Sprintf("%s (%d)", one.Message, one.Code))
		}
		a.said = strings.Join(said, "; ")
	}
	return res, nil
}

// failure says what came of a request that ended with err.
func (a *answer) failure(what string, err error, now time.Time) plan.Failure {
	f := plan.Failure{RetryAfter: a.retryAfter(now)}
	switch {
	case a.status == 0:
		f.Text, f.Unknown = fmt.Sprintf("%s: %v", what, err), true
		return f
	case a.status < http.StatusMultipleChoices:
		f.Text, f.Unknown = fmt.Sprintf("%s: the answer is not usable: %v", what, err), true
		return f
	case a.status >= http.StatusInternalServerError:
		f.Unknown = true
	case a.status == http.StatusTooManyRequests, a.status == http.StatusRequestTimeout,
		a.status == http.StatusConflict, a.status == http.StatusTooEarly:
	default:
		f.Refused = true
	}
	f.Text = fmt.Sprintf("%s: %d %s", what, a.status, http.StatusText(a.status))
	if a.said != "" {
		f.Text += ": " + a.said
	}
	return f
}

// retryAfter reads the header Retry-After: seconds, or a date. 0 if there is none.
func (a *answer) retryAfter(now time.Time) time.Duration {
	v := a.header.Get("Retry-After")
	if s, err := strconv.ParseFloat(v, 64); err == nil && s > 0 && s < math.MaxInt32 {
		return time.Duration(s * float64(time.Second))
	}
	if t, err := http.ParseTime(v); err == nil && t.After(now) {
		return t.Sub(now)
	}
	return 0
}

// limit reads the header Ratelimit, which every answer has: a list of limits such
// as "default";r=50;t=30, with the requests that remain and the seconds until the
// limit starts anew (Cloudflare Fundamentals: Rate limits). It returns the tightest,
// and false if there is none.
func (a *answer) limit() (remaining int, reset time.Duration, ok bool) {
	for item := range strings.SplitSeq(a.header.Get("Ratelimit"), ",") {
		r, t := -1, -1
		for param := range strings.SplitSeq(item, ";") {
			key, value, _ := strings.Cut(strings.TrimSpace(param), "=")
			n, err := strconv.Atoi(value)
			if err != nil || n < 0 || n > math.MaxInt32 {
				continue
			}
			switch key {
			case "r":
				r = n
			case "t":
				t = n
			}
		}
		if r >= 0 && t >= 0 && (!ok || r < remaining) {
			remaining, reset, ok = r, time.Duration(t)*time.Second, true
		}
	}
	return remaining, reset, ok
}
