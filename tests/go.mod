module github.com/sirocco-run/sirocco/tests

go 1.26.3
