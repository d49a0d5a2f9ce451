package fault

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"connectrpc.com/connect"
)

var codes = []Code{
	InvalidArgument, NotFound, AlreadyExists, FailedPrecondition, Quota, NoCapacity, ImageNotFound,
	PermissionDenied, Unauthenticated, Unavailable, Deadline, Internal,
}

func TestEveryCodePassesEveryWay(t *testing.T) {
	exits := map[int]Code{}
	for _, code := range codes {
		f := &Fault{Code: code, Message: "why", Field: "a.b", Scope: "node", RetryAfter: 2 * time.Second, ErrorID: "x"}
		if got := FromDetail(f.Detail()); *got != *f {
			t.Errorf("%s as a detail: %+v", code, got)
		}
		back := From(FromConnect(Connect(f)))
		if back.Code != code || back.Field != f.Field || back.RetryAfter != f.RetryAfter {
			t.Errorf("%s over Connect: %+v", code, back)
		}
		if code.HTTPStatus() < 400 || code.HTTPStatus() > 599 {
			t.Errorf("%s has the HTTP status %d", code, code.HTTPStatus())
		}
		if other, taken := exits[ExitCode(f)]; taken {
			t.Errorf("%s and %s have one exit code", code, other)
		}
		exits[ExitCode(f)] = code
	}
	if len(rows) != len(codes) {
		t.Errorf("%d codes in the table, %d in the test", len(rows), len(codes))
	}
}

func TestFrom(t *testing.T) {
	cause := errors.New("secret detail")
	for _, c := range []struct {
		err  error
		want Code
	}{
		{fmt.Errorf("place: %w", New(NotFound, "no")), NotFound},
		{fmt.Errorf("x: %w", context.DeadlineExceeded), Deadline},
		{context.Canceled, Unavailable},
		{cause, Internal},
	} {
		if got := From(c.err); got.Code != c.want {
			t.Errorf("%v is %s, want %s", c.err, got.Code, c.want)
		}
	}
	if f := From(cause); f.Message == cause.Error() || !errors.Is(f, cause) {
		t.Errorf("an internal fault says %q", f.Message)
	}
	if From(nil) != nil || CodeOf(nil) != "" || Connect(nil) != nil {
		t.Error("nil is not nil")
	}
	if !errors.Is(fmt.Errorf("x: %w", Invalid("f", "bad")), &Fault{Code: InvalidArgument}) {
		t.Error("errors.Is does not see the code")
	}
}

func TestForeignConnectErrors(t *testing.T) {
	for code, want := range map[connect.Code]Code{
		connect.CodeUnavailable: Unavailable, connect.CodeNotFound: NotFound, connect.CodeUnimplemented: InvalidArgument,
		connect.CodeResourceExhausted: Quota, connect.CodeUnknown: Internal, connect.CodeDeadlineExceeded: Deadline,
	} {
		if got := CodeOf(FromConnect(connect.NewError(code, errors.New("x")))); got != want {
			t.Errorf("%v is %s, want %s", code, got, want)
		}
	}
}
