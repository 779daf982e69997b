// Prints what Kubernetes' field manager answers to random sequences of writes, one sequence a line.
package main

import (
	"bufio"
	"compress/gzip"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand"
	"os"
	"sort"
	"strconv"
	"strings"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/managedfields"
	"k8s.io/kube-openapi/pkg/validation/spec"
	"sigs.k8s.io/structured-merge-diff/v6/fieldpath"
)

// One version of everything: nothing is converted, defaulted or made.
type plain struct{}

func (plain) Convert(in, out, context interface{}) error { return errors.New("not needed") }
func (plain) ConvertToVersion(in runtime.Object, _ runtime.GroupVersioner) (runtime.Object, error) {
	return in, nil
}
func (plain) ConvertFieldLabel(_ schema.GroupVersionKind, label, value string) (string, string, error) {
	return label, value, nil
}
func (plain) Default(runtime.Object) {}
func (plain) New(kind schema.GroupVersionKind) (runtime.Object, error) {
	object := &unstructured.Unstructured{Object: map[string]interface{}{}}
	object.SetGroupVersionKind(kind)
	return object, nil
}

type step struct {
	Op      string      `json:"op"`
	Door    string      `json:"door,omitempty"`
	Manager string      `json:"manager"`
	Force   bool        `json:"force,omitempty"`
	Object  interface{} `json:"object"`
	// The answer: the new state, or what stands against it.
	Result    interface{}         `json:"result,omitempty"`
	Managed   []map[string]string `json:"managed,omitempty"`
	Conflicts []string            `json:"conflicts,omitempty"`
	Refused   bool                `json:"refused,omitempty"`
}

type sequence struct {
	Kind  string `json:"kind"`
	Steps []step `json:"steps"`
}

func check(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func schemas(path string) map[string]*spec.Schema {
	file, err := os.Open(path)
	check(err)
	reader, err := gzip.NewReader(file)
	check(err)
	all := map[string]*spec.Schema{}
	check(json.NewDecoder(reader).Decode(&all))
	widget := &spec.Schema{}
	text, err := os.ReadFile("widget.json")
	check(err)
	check(json.Unmarshal(text, widget))
	metadata := spec.MustCreateRef("#/components/schemas/io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta")
	widget.Properties["metadata"] = spec.Schema{SchemaProps: spec.SchemaProps{Ref: metadata}}
	widget.Properties["apiVersion"] = *spec.StringProperty()
	widget.Properties["kind"] = *spec.StringProperty()
	widget.AddExtension("x-kubernetes-group-version-kind", []interface{}{
		map[string]interface{}{"group": "example.com", "version": "v1", "kind": "Widget"}})
	all["com.example.v1.Widget"] = widget
	return all
}

func copyOf(value interface{}) interface{} {
	return runtime.DeepCopyJSONValue(value)
}

func dropNulls(value interface{}) interface{} {
	switch it := value.(type) {
	case map[string]interface{}:
		for key, field := range it {
			if field == nil {
				delete(it, key)
			} else {
				it[key] = dropNulls(field)
			}
		}
	case []interface{}:
		for at, item := range it {
			it[at] = dropNulls(item)
		}
	}
	return value
}

func managed(object *unstructured.Unstructured) []map[string]string {
	all := []map[string]string{}
	for _, it := range object.GetManagedFields() {
		all = append(all, map[string]string{"manager": it.Manager, "operation": string(it.Operation),
			"subresource": it.Subresource, "fields": string(it.FieldsV1.Raw)})
	}
	sort.Slice(all, func(a, b int) bool {
		key := func(it map[string]string) string {
			return it["operation"] + "/" + it["manager"] + "/" + it["subresource"]
		}
		return key(all[a]) < key(all[b])
	})
	return all
}

func main() {
	converter, err := managedfields.NewTypeConverter(schemas(os.Args[1]), false)
	check(err)
	count, err := strconv.Atoi(os.Args[2])
	check(err)
	out := bufio.NewWriter(os.Stdout)
	defer out.Flush()
	kinds := grammars()
	for seed := 0; seed < count; seed++ {
		dice := rand.New(rand.NewSource(int64(seed)))
		kind := kinds[seed%len(kinds)]
		group := kind.gvk.GroupVersion()
		manager := func(subresource string, ignored ...fieldpath.Path) *managedfields.FieldManager {
			filter := map[fieldpath.APIVersion]fieldpath.Filter{
				fieldpath.APIVersion(group.String()): fieldpath.NewExcludeSetFilter(fieldpath.NewSet(ignored...))}
			it, err := managedfields.NewDefaultFieldManager(converter, plain{}, plain{}, plain{}, kind.gvk, group, subresource, filter)
			check(err)
			return it
		}
		doors := map[string]*managedfields.FieldManager{
			"":       manager("", fieldpath.MakePathOrDie("status")),
			"status": manager("status", fieldpath.MakePathOrDie("spec"), fieldpath.MakePathOrDie("metadata", "labels")),
		}
		line := sequence{Kind: kind.gvk.Kind}
		var live *unstructured.Unstructured
		count := 3 + dice.Intn(6)
		names := []string{"ci", "ops", "kubectl", "tool"}
		if seed%20 == 19 {
			// Many writers: more than the record keeps apart.
			count = 18
			for at := range 14 {
				names = append(names, fmt.Sprintf("writer-%02d", at))
			}
		}
		for range count {
			next, result := write(dice, kind, names, doors, live)
			if result != nil {
				live = result
			}
			line.Steps = append(line.Steps, next)
		}
		text, err := json.Marshal(line)
		check(err)
		out.Write(append(text, '\n'))
	}
}

func write(dice *rand.Rand, kind grammar, names []string, doors map[string]*managedfields.FieldManager, live *unstructured.Unstructured) (step, *unstructured.Unstructured) {
	next := step{Manager: names[dice.Intn(len(names))], Op: "apply"}
	if dice.Intn(3) == 0 || (len(names) > 4 && dice.Intn(4) != 0) {
		next.Op = "update"
	}
	if live != nil && dice.Intn(6) == 0 {
		next.Door = "status"
	}
	next.Force = next.Op == "apply" && dice.Intn(3) == 0
	base := live
	if base == nil {
		base = &unstructured.Unstructured{Object: map[string]interface{}{}}
		base.SetGroupVersionKind(kind.gvk)
		if next.Op == "update" {
			// As the empty object of a typed kind.
			for _, part := range []string{"metadata", "spec", "status"} {
				base.Object[part] = map[string]interface{}{}
			}
		}
	}
	object := map[string]interface{}{"apiVersion": kind.gvk.GroupVersion().String(), "kind": kind.gvk.Kind}
	generated := kind.main(dice).(map[string]interface{})
	if next.Door == "status" || dice.Intn(20) == 0 {
		generated["status"] = kind.status(dice)
	}
	for key, value := range generated {
		object[key] = value
	}
	if next.Op == "update" {
		changed := copyOf(base.Object).(map[string]interface{})
		mix(dice, changed, object)
		if next.Manager == "kubectl" && next.Door == "" {
			// As client-side apply does it.
			stated, err := json.Marshal(object)
			check(err)
			metadata, ok := changed["metadata"].(map[string]interface{})
			if ok && metadata["annotations"] == nil {
				metadata["annotations"] = map[string]interface{}{}
			}
			metadata["annotations"].(map[string]interface{})["kubectl.kubernetes.io/last-applied-configuration"] = string(stated)
		}
		object = changed
		if dice.Intn(12) == 0 {
			object["metadata"].(map[string]interface{})["managedFields"] = []interface{}{map[string]interface{}{}}
		}
	} else if dice.Intn(25) == 0 {
		twice(dice, object)
	}
	if object["metadata"] == nil {
		object["metadata"] = map[string]interface{}{}
	}
	object["metadata"].(map[string]interface{})["name"] = "x"
	given := copyOf(object).(map[string]interface{})
	if next.Op == "update" && len(given["metadata"].(map[string]interface{})) > 0 {
		// The record of the live state is known to the reader.
		if fields, ok := given["metadata"].(map[string]interface{})["managedFields"].([]interface{}); ok && len(fields) > 0 {
			if first, ok := fields[0].(map[string]interface{}); ok && len(first) > 0 {
				delete(given["metadata"].(map[string]interface{}), "managedFields")
			}
		}
	}
	next.Object = given
	asked := &unstructured.Unstructured{Object: object}
	door := doors[next.Door]
	var result runtime.Object
	var err error
	if next.Op == "apply" {
		result, err = door.Apply(base.DeepCopy(), asked, next.Manager, next.Force)
	} else {
		result, err = door.Update(base.DeepCopy(), asked, next.Manager)
	}
	if err != nil {
		var status apierrors.APIStatus
		if errors.As(err, &status) && status.Status().Reason == metav1.StatusReasonConflict {
			for _, cause := range status.Status().Details.Causes {
				message, _, _ := strings.Cut(cause.Message, " at 2")
				next.Conflicts = append(next.Conflicts, message+": "+cause.Field)
			}
			sort.Strings(next.Conflicts)
		} else {
			next.Refused = true
		}
		return next, nil
	}
	made := result.(*unstructured.Unstructured)
	made.Object = dropNulls(made.Object).(map[string]interface{})
	made.SetUID("u")
	next.Managed = managed(made)
	// One time for all, so that their order is that of their names.
	fields := made.GetManagedFields()
	for at := range fields {
		fields[at].Time = &metav1.Time{}
	}
	made.SetManagedFields(fields)
	shown := made.DeepCopy()
	shown.SetManagedFields(nil)
	next.Result = shown.Object
	return next, made
}

// Takes some fields of `from` over, and forgets some.
func mix(dice *rand.Rand, into, from map[string]interface{}) {
	keys := []string{}
	for key := range from {
		keys = append(keys, key)
	}
	for key := range into {
		if _, ok := from[key]; !ok {
			keys = append(keys, key)
		}
	}
	sort.Strings(keys)
	for _, key := range keys {
		if key == "apiVersion" || key == "kind" || key == "managedFields" {
			continue
		}
		old, isMap := into[key].(map[string]interface{})
		new, alsoMap := from[key].(map[string]interface{})
		switch {
		case isMap && alsoMap && dice.Intn(4) != 0:
			mix(dice, old, new)
		case from[key] != nil && dice.Intn(2) == 0:
			into[key] = from[key]
		case key != "metadata" && key != "spec" && dice.Intn(5) == 0:
			delete(into, key)
		}
	}
	if into["metadata"] == nil {
		if _, ok := into["apiVersion"]; ok {
			into["metadata"] = map[string]interface{}{}
		}
	}
}

// Doubles an item of some list: an apply of it is refused where items have keys.
func twice(dice *rand.Rand, value interface{}) {
	switch it := value.(type) {
	case map[string]interface{}:
		keys := []string{}
		for key := range it {
			keys = append(keys, key)
		}
		sort.Strings(keys)
		for _, key := range keys {
			if list, ok := it[key].([]interface{}); ok && len(list) > 0 && dice.Intn(2) == 0 {
				it[key] = append(list, copyOf(list[0]))
				return
			}
			twice(dice, it[key])
		}
	}
}
