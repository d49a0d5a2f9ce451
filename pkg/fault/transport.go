package fault

import (
	"errors"

	"connectrpc.com/connect"
	siroccov1 "github.com/sirocco-run/sirocco/proto/gen/sirocco/v1"
)

// row says how a code looks in each of the ways out.
type row struct {
	rpc  connect.Code // gRPC and Connect; REST follows from it
	http int          // where HTTP is spoken without RPC; also the micro error code on the bus
	exit int          // exit code of the command line
}

var rows = map[Code]row{
	InvalidArgument:    {connect.CodeInvalidArgument, 400, 2},
	NotFound:           {connect.CodeNotFound, 404, 3},
	AlreadyExists:      {connect.CodeAlreadyExists, 409, 4},
	FailedPrecondition: {connect.CodeFailedPrecondition, 412, 5},
	Quota:              {connect.CodeResourceExhausted, 429, 6},
	NoCapacity:         {connect.CodeResourceExhausted, 429, 7},
	ImageNotFound:      {connect.CodeNotFound, 404, 8},
	PermissionDenied:   {connect.CodePermissionDenied, 403, 9},
	Unauthenticated:    {connect.CodeUnauthenticated, 401, 10},
	Unavailable:        {connect.CodeUnavailable, 503, 11},
	Deadline:           {connect.CodeDeadlineExceeded, 504, 12},
	Internal:           {connect.CodeInternal, 500, 13},
}

// HTTPStatus returns the HTTP status of a code.
func (c Code) HTTPStatus() int { return rows[c].http }

// ExitCode returns the exit code of the command line for an error: 0 for nil.
func ExitCode(err error) int {
	if err == nil {
		return 0
	}
	return rows[CodeOf(err)].exit
}

// Connect returns err as a Connect error that carries the ErrorDetail. A
// *connect.Error that already has a detail, and nil, are returned as they are.
func Connect(err error) error {
	if err == nil {
		return nil
	}
	var ce *connect.Error
	f := From(err)
	if errors.As(err, &ce) && !hasFault(err) {
		if len(ce.Details()) > 0 {
			return ce
		}
		f = From(FromConnect(ce))
	}
	ce = connect.NewError(rows[f.Code].rpc, errors.New(f.Message))
	if detail, derr := connect.NewErrorDetail(f.Detail()); derr == nil {
		ce.AddDetail(detail)
	}
	return ce
}

func hasFault(err error) bool {
	var f *Fault
	return errors.As(err, &f)
}

// FromConnect is the inverse of Connect, for clients. A Connect error without
// our detail (from a proxy, or a broken connection) keeps its meaning as far
// as the codes allow.
func FromConnect(err error) error {
	var ce *connect.Error
	if err == nil || !errors.As(err, &ce) {
		return err
	}
	for _, d := range ce.Details() {
		if v, verr := d.Value(); verr == nil {
			if detail, ok := v.(*siroccov1.ErrorDetail); ok {
				return FromDetail(detail)
			}
		}
	}
	f := &Fault{Code: Internal, Message: ce.Message(), Cause: err}
	switch ce.Code() {
	case connect.CodeCanceled:
		f.Code = Unavailable
	case connect.CodeResourceExhausted:
		f.Code = Quota
	case connect.CodeOutOfRange, connect.CodeUnimplemented:
		f.Code = InvalidArgument
	default:
		for code, r := range rows {
			if r.rpc == ce.Code() && code != ImageNotFound {
				f.Code = code
			}
		}
	}
	return f
}
