// Renders the chart as `helm template` does, with the same template engine and function library, where Helm itself is not
// installed: Go and sprig of Debian (golang-go, golang-github-masterminds-sprig-dev, golang-k8s-sigs-yaml-dev) do.
//
//	GO111MODULE=off GOPATH=/usr/share/gocode go run render.go CHART RELEASE NAMESPACE [VALUES...]
package main

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sort"
	"strings"
	"text/template"

	"github.com/Masterminds/sprig"
	"sigs.k8s.io/yaml"
)

type object = map[string]interface{}

func fatal(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func read(path string) object {
	text, err := os.ReadFile(path)
	fatal(err)
	values := object{}
	fatal(yaml.Unmarshal(text, &values))
	return values
}

// merge puts what over has over base, section by section; null takes away.
func merge(base, over object) object {
	for key, value := range over {
		section, ok := value.(object)
		below, both := base[key].(object)
		switch {
		case value == nil:
			delete(base, key)
		case ok && both:
			base[key] = merge(below, section)
		default:
			base[key] = value
		}
	}
	return base
}

type files string

// Get is the content of a file of the chart.
func (chart files) Get(name string) (string, error) {
	text, err := os.ReadFile(filepath.Join(string(chart), name))
	return string(text), err
}

func main() {
	if len(os.Args) < 4 {
		fatal(errors.New("render.go CHART RELEASE NAMESPACE [VALUES...]"))
	}
	chart, values := os.Args[1], read(filepath.Join(os.Args[1], "values.yaml"))
	for _, more := range os.Args[4:] {
		values = merge(values, read(more))
	}
	about := read(filepath.Join(chart, "Chart.yaml"))
	scope := object{
		"Values":  values,
		"Files":   files(chart),
		"Chart":   object{"Name": about["name"], "Version": about["version"], "AppVersion": about["appVersion"]},
		"Release": object{"Name": os.Args[2], "Namespace": os.Args[3], "Service": "Helm"},
	}
	all := template.New("chart").Option("missingkey=zero")
	functions := sprig.TxtFuncMap()
	functions["toYaml"] = func(value interface{}) (string, error) {
		text, err := yaml.Marshal(value)
		return strings.TrimSuffix(string(text), "\n"), err
	}
	functions["include"] = func(name string, data interface{}) (string, error) {
		var out bytes.Buffer
		err := all.ExecuteTemplate(&out, name, data)
		return out.String(), err
	}
	all.Funcs(functions) // NOTES.txt is parsed too, and not printed
	paths, err := filepath.Glob(filepath.Join(chart, "templates", "*"))
	fatal(err)
	sort.Strings(paths)
	for _, path := range paths {
		text, err := os.ReadFile(path)
		fatal(err)
		_, err = all.New(filepath.Base(path)).Parse(string(text))
		fatal(err)
	}
	for _, path := range paths {
		if strings.HasPrefix(filepath.Base(path), "_") || filepath.Ext(path) == ".txt" {
			continue
		}
		var out bytes.Buffer
		fatal(all.ExecuteTemplate(&out, filepath.Base(path), scope))
		if strings.TrimSpace(out.String()) != "" {
			fmt.Printf("---\n# Source: nowconnect/templates/%s\n%s\n", filepath.Base(path), strings.TrimPrefix(strings.TrimSpace(out.String()), "---\n"))
		}
	}
}
