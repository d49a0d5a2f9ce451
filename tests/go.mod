module github.com/sirocco-run/sirocco/tests

go 1.26.3

require github.com/sirocco-run/sirocco v0.0.0

replace (
	github.com/sirocco-run/sirocco => ../
	github.com/sirocco-run/sirocco/proto => ../proto
	github.com/sirocco-run/sirocco/sdk/go => ../sdk/go
)
