package main

import (
	"math/rand"
	"sort"

	"k8s.io/apimachinery/pkg/runtime/schema"
)

// Makes a random value.
type maker func(*rand.Rand) interface{}

type grammar struct {
	gvk          schema.GroupVersionKind
	main, status maker
}

func one(values ...interface{}) maker {
	return func(dice *rand.Rand) interface{} { return copyOf(values[dice.Intn(len(values))]) }
}

type fields map[string]maker

// Each field with these chances in ten.
func some(chance int, all fields) maker {
	names := []string{}
	for name := range all {
		names = append(names, name)
	}
	sort.Strings(names)
	return func(dice *rand.Rand) interface{} {
		object := map[string]interface{}{}
		for _, name := range names {
			if dice.Intn(10) < chance {
				object[name] = all[name](dice)
			}
		}
		return object
	}
}

// Items in a random order, each with its key.
func keyed(item maker, keys ...map[string]interface{}) maker {
	return func(dice *rand.Rand) interface{} {
		list := []interface{}{}
		for _, at := range dice.Perm(len(keys)) {
			if dice.Intn(2) == 0 {
				continue
			}
			object := item(dice).(map[string]interface{})
			for name, value := range keys[at] {
				object[name] = value
			}
			list = append(list, object)
		}
		return list
	}
}

func named(item maker, names ...string) maker {
	return by("name", item, names...)
}

func by(key string, item maker, values ...string) maker {
	keys := []map[string]interface{}{}
	for _, value := range values {
		keys = append(keys, map[string]interface{}{key: value})
	}
	return keyed(item, keys...)
}

func subset(values ...interface{}) maker {
	return func(dice *rand.Rand) interface{} {
		list := []interface{}{}
		for _, at := range dice.Perm(len(values)) {
			if dice.Intn(2) == 0 {
				list = append(list, values[at])
			}
		}
		return list
	}
}

type object = map[string]interface{}

func grammars() []grammar {
	labels := some(4, fields{"a": one("1", "2"), "b": one("1", "2"), "c": one("1")})
	metadata := some(4, fields{
		"labels": labels, "annotations": labels, "finalizers": subset("x.y/a", "x.y/b", "x.y/c"),
		"ownerReferences": by("uid", some(9, fields{"name": one("n", "m"), "kind": one("K"), "apiVersion": one("v1")}), "u1", "u2"),
	})
	secret := one(object{"name": "s", "key": "k"}, object{"name": "t", "key": "k"})
	container := some(5, fields{
		"image":   one("i:1", "i:2"),
		"command": subset("a", "b"),
		"env": named(some(6, fields{"value": one("1", "2"),
			"valueFrom": some(8, fields{"secretKeyRef": secret})}), "E", "F", "G"),
		"ports": keyed(some(5, fields{"name": one("http", "web"), "hostPort": one(int64(1), int64(2))}),
			object{"containerPort": int64(80)}, object{"containerPort": int64(80), "protocol": "UDP"},
			object{"containerPort": int64(90), "protocol": "TCP"}),
		"resources": some(6, fields{"limits": some(5, fields{"cpu": one("1", "2"), "memory": one("1Gi")}),
			"requests": some(5, fields{"cpu": one("1", "2")})}),
		"volumeMounts":    by("mountPath", some(8, fields{"name": one("v", "w"), "readOnly": one(true)}), "/a", "/b"),
		"securityContext": some(5, fields{"runAsUser": one(int64(1), int64(2)), "capabilities": some(7, fields{"add": subset("A", "B")})}),
	})
	pod := some(4, fields{
		"containers":       named(container, "a", "b", "c"),
		"initContainers":   named(container, "i"),
		"volumes":          named(some(7, fields{"emptyDir": one(object{}, object{"medium": "Memory"}), "configMap": some(7, fields{"name": one("c", "d")})}), "v", "w"),
		"nodeSelector":     labels,
		"tolerations":      one([]interface{}{object{"key": "a"}}, []interface{}{object{"key": "b"}}, []interface{}{}),
		"imagePullSecrets": named(some(0, fields{}), "p", "q"),
		"topologySpreadConstraints": keyed(some(7, fields{"maxSkew": one(int64(1), int64(2))}),
			object{"topologyKey": "k", "whenUnsatisfiable": "DoNotSchedule"}, object{"topologyKey": "k", "whenUnsatisfiable": "ScheduleAnyway"}),
		"hostAliases":                   by("ip", some(7, fields{"hostnames": subset("h", "g")}), "1.1.1.1", "2.2.2.2"),
		"terminationGracePeriodSeconds": one(int64(1), int64(2)),
		"securityContext":               one(object{}, object{"runAsUser": int64(1)}),
		"affinity":                      one(object{}, object{"podAffinity": object{}}),
	})
	conditions := by("type", some(7, fields{"status": one("True", "False"), "reason": one("R", "S")}), "A", "B", "C")
	root := func(chance int, spec maker) maker {
		return some(9, fields{"metadata": metadata, "spec": spec})
	}
	deployment := some(5, fields{
		"replicas": one(int64(1), int64(2), int64(3), nil), "paused": one(true, false),
		"strategy": some(6, fields{"type": one("Recreate", "RollingUpdate"), "rollingUpdate": some(6, fields{"maxSurge": one(int64(1), "25%")})}),
		"selector": one(object{"matchLabels": object{"a": "1"}}, object{"matchLabels": object{"a": "2"}}),
		"template": some(8, fields{"metadata": some(6, fields{"labels": labels}), "spec": pod}),
	})
	service := some(5, fields{
		"type": one("ClusterIP", "NodePort"), "selector": labels, "externalIPs": subset("9.9.9.9", "8.8.8.8"),
		"ports": keyed(some(5, fields{"name": one("a", "b"), "targetPort": one(int64(80), "http")}),
			object{"port": int64(80)}, object{"port": int64(80), "protocol": "UDP"}, object{"port": int64(443), "protocol": "TCP"}),
	})
	inner := some(6, fields{"v": one(int64(1), int64(2), "x"), "w": labels})
	widget := some(5, fields{
		"size": one(int64(1), int64(2)), "tags": subset("a", "b", "c", "d"), "numbers": subset(int64(1), int64(2)),
		"items": keyed(some(6, fields{"v": one("1", "2"), "deep": some(6, fields{"x": one(true, false)})}),
			object{"name": "a"}, object{"name": "a", "kind": "y"}, object{"name": "b", "kind": "x"}),
		"whole": subset("a", "b"), "wholeMap": labels, "atomicStruct": some(6, fields{"x": one("1", "2"), "y": one("1")}),
		"entries": some(5, fields{"k1": some(6, fields{"x": one("1", "2"), "y": one("1")}), "k2": some(6, fields{"x": one("1")})}),
		"free":    some(5, fields{"m": inner, "l": subset("a", "b"), "s": one("1", "2", int64(3)), "e": one(object{}, []interface{}{})}),
		"plain":   labels,
	})
	status := some(6, fields{"conditions": conditions, "replicas": one(int64(1), int64(2))})
	return []grammar{
		{schema.GroupVersionKind{Group: "apps", Version: "v1", Kind: "Deployment"}, root(9, deployment), status},
		{schema.GroupVersionKind{Group: "example.com", Version: "v1", Kind: "Widget"}, root(9, widget), status},
		{schema.GroupVersionKind{Version: "v1", Kind: "Service"}, root(9, service), some(8, fields{"conditions": conditions})},
		{schema.GroupVersionKind{Version: "v1", Kind: "Pod"}, root(9, pod), some(8, fields{"conditions": conditions, "phase": one("A", "B")})},
	}
}
